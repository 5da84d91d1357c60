"""Loops of a compiled kernel, each with the loop of Python that it was and its steps of time."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from benchmarks.gpu import sass


class Turn(NamedTuple):
    """What one turn of a loop stands for.

    Attributes:
        title: The loop as Python has it.
        steps: Steps of time in a turn.
    """

    title: str
    steps: int


class Source:
    """The loops of a kernel as Python has them, apart from those that are unrolled.

    Args:
        function: The kernel, without Triton's wrapper.
        values: Its constants.
        warps: Of a program.
    """

    def __init__(self, function: Callable[..., Any], values: Mapping[str, Any], warps: int) -> None:
        lines, first = inspect.getsourcelines(function)
        self.file = inspect.getsourcefile(function)
        self.lines = {first + index: text for index, text in enumerate(lines)}
        self.values = values
        # Decays that a thread computes in a step: a program's tile has STATES x BLOCK.
        self.decays = values.get("STATES", 0) * values.get("BLOCK", 0) / (32 * warps)
        tree = ast.parse(textwrap.dedent("".join(lines)))
        ast.increment_lineno(tree, first - 1)
        self.loops = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter)
        ]

    def turn(self, loop: sass.Loop) -> Turn | None:
        """Describe a turn of this loop; None if Python has no such loop."""
        node = self._loop_of(loop)
        if node is None:
            return None
        over = f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"
        steps = self._written_steps(node) or self._unrolled_steps(loop.code)
        return Turn(f"`{over}`, line {node.lineno}", steps)

    def _loop_of(self, loop: sass.Loop) -> ast.For | None:
        """Return the innermost loop of Python that holds the loops inside this one.

        Lines do not tell: what a pipelined loop loads before its first turn has the lines of that
        loop, but runs in the loop around it. Without loops inside, it is the innermost that holds
        most lines. Not all: compilers move code, and give what they merge the line of one of the
        two.
        """
        if inner := [node for each in loop.inner if (node := self._loop_of(each)) is not None]:
            fitting = [
                node
                for node in self.loops
                if all(each is not node and each in ast.walk(node) for each in inner)
            ]
        else:
            mine = [item.line for item in loop.code if item.file == self.file]
            held = {
                node: sum(node.lineno <= line <= (node.end_lineno or 0) for line in mine)
                for node in self.loops
            }
            most = max(held.values(), default=0)
            fitting = [node for node in self.loops if most and held[node] > most / 2]
        return max(fitting, key=lambda node: node.lineno, default=None)

    def _written_steps(self, node: ast.For) -> int | None:
        """Return the steps in a turn of a loop over chunks, or over tiles or steps so far apart."""
        variable = ast.unparse(node.target)
        if variable.startswith("chunk"):
            return int(self.values["CHUNK"])
        each = int(self.values["STEPS"]) if variable.startswith("run") else 1
        if isinstance(node.iter, ast.Call) and len(node.iter.args) == 3:
            return each * self._value(node.iter.args[2])
        return each if each > 1 else None

    def _value(self, node: ast.expr) -> int:
        """Compute a constant, or a quotient of two."""
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.FloorDiv):
            return self._value(node.left) // self._value(node.right)
        return int(self.values[ast.unparse(node)])

    def _unrolled_steps(self, code: list[sass.Instruction]) -> int:
        """Count the steps in a turn from the decays in it: the compiler may have unrolled it."""
        lines = [
            item.line
            for item in code
            if item.code.startswith("MUFU.EX2")
            and item.file == self.file
            and "exp2" in self.lines.get(item.line, "")
        ]
        found = max((lines.count(line) for line in set(lines)), default=0)
        return max(1, round(found / self.decays)) if self.decays else 1
