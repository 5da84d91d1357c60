"""Search a syntax tree for nodes that must exist exactly once."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TypeVar

from muse_adapter.patching.errors import PatchError

Function = ast.FunctionDef | ast.AsyncFunctionDef
_Node = TypeVar("_Node", bound=ast.AST)


def exactly_one(found: Sequence[_Node], file: str, description: str, advice: str = "") -> _Node:
    """Return the only element.

    Raises:
        PatchError: There is none, or there are several.
    """
    if len(found) == 1:
        return found[0]
    lines = ", ".join(str(getattr(node, "lineno", "?")) for node in found)
    count = f"found {len(found)} (lines {lines})" if found else "found none"
    suffix = f"; {advice}" if advice else ""
    raise PatchError(f"{file}: expected exactly one {description}, {count}{suffix}")


def find_class(tree: ast.Module, name: str, file: str, option: str) -> ast.ClassDef:
    """Find a class of the module.

    Raises:
        PatchError: It does not exist exactly once; the message mentions `option`.
    """
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return exactly_one(found, file, f"class {name}", f"name another with {option}")


def find_function(
    owner: ast.Module | ast.ClassDef, name: str, file: str, option: str = ""
) -> Function:
    """Find a function of the module or a method of the class.

    Raises:
        PatchError: It does not exist exactly once; the message mentions `option`.
    """
    found = [node for node in owner.body if isinstance(node, Function) and node.name == name]
    inside = f" in class {owner.name}" if isinstance(owner, ast.ClassDef) else ""
    advice = option and f"name another with {option}"
    return exactly_one(found, file, f"def {name}{inside}", advice)


def calls(owner: ast.AST, name: str) -> list[ast.Call]:
    """Return all calls of `name(...)` or `….name(...)` inside a node."""
    return [
        node
        for node in ast.walk(owner)
        if isinstance(node, ast.Call) and _function_name(node.func) == name
    ]


def _function_name(func: ast.expr) -> str | None:
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else None


def statements(owner: ast.AST) -> Iterator[ast.stmt]:
    """Iterate over all statements inside a node, at any depth, outermost first."""
    return (node for node in ast.walk(owner) if isinstance(node, ast.stmt) and node is not owner)


def statement_of(owner: ast.AST, node: ast.AST) -> ast.stmt:
    """Return the innermost statement that contains a node."""
    return [one for one in statements(owner) if any(part is node for part in ast.walk(one))][-1]


def parameters(function: Function) -> list[str]:
    """Return the names of the parameters in order; `*args` and `**kwargs` with their stars."""
    arguments = function.args
    names = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args)]
    names += [f"*{arguments.vararg.arg}"] if arguments.vararg else []
    names += [argument.arg for argument in arguments.kwonlyargs]
    return names + ([f"**{arguments.kwarg.arg}"] if arguments.kwarg else [])
