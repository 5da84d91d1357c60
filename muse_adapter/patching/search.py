"""Looking for one thing in a syntax tree: exactly once, or an error that names it."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import TypeVar

from muse_adapter.patching.errors import PatchError

Function = ast.FunctionDef | ast.AsyncFunctionDef
_Node = TypeVar("_Node", bound=ast.AST)


def only(found: Sequence[_Node], name: str, what: str, advice: str = "") -> _Node:
    """The one element.

    Raises:
        PatchError: There is none, or there are several.
    """
    if len(found) == 1:
        return found[0]
    lines = ", ".join(str(getattr(node, "lineno", "?")) for node in found)
    count = f"found {len(found)} (lines {lines})" if found else "found none"
    raise PatchError(f"{name}: expected exactly one {what}, {count}" + (advice and f"; {advice}"))


def find_class(tree: ast.Module, name: str, file: str, option: str) -> ast.ClassDef:
    """A class of the module."""
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    return only(found, file, f"class {name}", f"another is named with {option}")


def find_function(
    owner: ast.Module | ast.ClassDef, name: str, file: str, option: str = ""
) -> Function:
    """A function of the module, or a method of the class."""
    found = [node for node in owner.body if isinstance(node, Function) and node.name == name]
    inside = f" in class {owner.name}" if isinstance(owner, ast.ClassDef) else ""
    advice = option and f"another is named with {option}"
    return only(found, file, f"def {name}{inside}", advice)


def calls(owner: ast.AST, name: str) -> list[ast.Call]:
    """All calls of `name(...)` or `….name(...)` inside."""
    return [
        node
        for node in ast.walk(owner)
        if isinstance(node, ast.Call) and _called(node.func) == name
    ]


def _called(func: ast.expr) -> str | None:
    if isinstance(func, ast.Attribute):
        return func.attr
    return func.id if isinstance(func, ast.Name) else None


def statements(owner: ast.AST) -> Iterator[ast.stmt]:
    """All statements inside, at any depth, outermost first."""
    return (node for node in ast.walk(owner) if isinstance(node, ast.stmt) and node is not owner)


def statement_of(owner: ast.AST, node: ast.AST) -> ast.stmt:
    """The innermost statement that holds a node."""
    return [one for one in statements(owner) if any(part is node for part in ast.walk(one))][-1]


def parameters(function: Function) -> list[str]:
    """Names of the parameters, in order; those of *args and **kwargs with their stars."""
    given = function.args
    names = [one.arg for one in (*given.posonlyargs, *given.args)]
    names += [f"*{given.vararg.arg}"] if given.vararg else []
    names += [one.arg for one in given.kwonlyargs]
    return names + ([f"**{given.kwarg.arg}"] if given.kwarg else [])
