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
        share: Part of all steps that go through this loop.
    """

    title: str
    steps: int
    share: float


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

    def turn(self, code: list[sass.Instruction]) -> Turn | None:
        """Describe a turn of the loop with these instructions; None if Python has no such loop."""
        node = self._loop_of(code)
        if node is None:
            return None
        steps = self._written_steps(node) or self._unrolled_steps(code)
        share = 1.0
        for outer in self.loops:
            if "runs - 1" in ast.unparse(outer.iter) and node in ast.walk(outer):
                share = 1 - self._run() / self.values["CHUNK"]  # all runs of a chunk but one
        over = f"for {ast.unparse(node.target)} in {ast.unparse(node.iter)}"
        return Turn(f"`{over}`, line {node.lineno}", steps, share)

    def _loop_of(self, code: list[sass.Instruction]) -> ast.For | None:
        """Return the innermost loop that holds most lines of these instructions.

        Not all: compilers move code, and give what they merge the line of one of the two.
        """
        mine = [item.line for item in code if item.file == self.file]

        def held(node: ast.For) -> int:
            return sum(node.lineno <= line <= (node.end_lineno or 0) for line in mine)

        most = max(map(held, self.loops), default=0)
        fitting = [node for node in self.loops if most and held(node) > most / 2]
        return max(fitting, key=lambda node: node.lineno, default=None)

    def _run(self) -> int:
        """Return the steps in a run, which the backward pass works on at once."""
        return int(self.values["RUN" if "RUN" in self.values else "STEPS"])

    def _written_steps(self, node: ast.For) -> int | None:
        """Return the steps in a turn of a loop over chunks, runs or tiles, or of unrolled steps."""
        variable = ast.unparse(node.target)
        if variable.startswith("chunk"):
            return int(self.values["CHUNK"])
        if variable.startswith("run"):
            return self._run()
        if isinstance(node.iter, ast.Call) and len(node.iter.args) == 3:
            return int(self.values[ast.unparse(node.iter.args[2])])
        for inner in ast.walk(node):
            if not isinstance(inner, ast.For) or not isinstance(inner.iter, ast.Call):
                continue
            count = ast.unparse(inner.iter.args[0])
            targets = [
                ast.unparse(target)
                for statement in ast.walk(inner)
                if isinstance(statement, ast.Assign)
                for target in statement.targets
            ]
            if "static_range" in ast.unparse(inner.iter) and "t" in targets:
                return int(self.values[count])
        return None

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
