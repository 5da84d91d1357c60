"""Check in the syntax tree that a checkout behaves like CLIP4Clip at the insertion points.

A fork may have all six insertion points and yet different semantics; patching it would silently
give wrong results. Each check returns a list of problems, in words.
"""

from __future__ import annotations

import ast

from muse_adapter.patching.hosts import Host
from muse_adapter.patching.search import (
    Function,
    calls,
    find_class,
    find_function,
    parameters,
    statement_of,
    statements,
)

# Tensor methods that change only the shape or the dtype.
_RESHAPING = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"),
    *("float", "to", "type", "size"),
}


def clip_problems(tree: ast.Module, host: Host, file: str) -> list[str]:
    """Check that CLIP's `encode_image` can return the pair (class features, all tokens).

    Raises:
        PatchError: The class or the method does not exist exactly once.
    """
    owner = find_class(tree, host.clip_class, file, "--clip-class")
    function = find_function(owner, host.encode_function, file, "--encode-function")
    where = f"{file}, line {function.lineno}: {host.encode_function}"
    missing = [n for n in ("return_hidden", "video_frame") if n not in parameters(function)]
    if missing:
        return [f"{where} has no parameter {' and no '.join(missing)}"]
    branches = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "return_hidden"
    ]
    counts = [
        _num_values(statement)
        for branch in branches
        for statement in branch.body
        if isinstance(statement, ast.Return)
    ]
    if counts != [2]:
        return [
            f"{where} does not return the pair (class features, all tokens) under `if "
            "return_hidden:`, so its tokens have another meaning"
        ]
    counts = [_num_values(one) for one in statements(function) if isinstance(one, ast.Return)]
    if sorted(counts) != [1, 2]:
        return [f"{where} does not return the class features alone without return_hidden"]
    return []


def visual_problems(owner: ast.ClassDef, function: Function, host: Host, file: str) -> list[str]:
    """Check the model's method from frames to frame features.

    It must take frames and mask, return one value, and only reshape CLIP's features.
    """
    where = f"{file}, line {function.lineno}: {function.name}"
    expected = ["self", "video", "video_mask", "shaped", "video_frame"]
    given = parameters(function)
    problems = []
    if missing := [name for name in expected if name not in given and name != "shaped"]:
        problems.append(f"{where} has no parameter {', '.join(missing)}")
    if extra := [name for name in given if name not in expected]:
        problems.append(f"{where} also takes {', '.join(extra)}, which the head would ignore")
    returns = [one for one in statements(function) if isinstance(one, ast.Return)]
    if [_num_values(one) for one in returns] != [1]:
        problems.append(
            f"{where} must have a single return of one value; it returns {_describe(returns)}"
        )
    found = calls(owner, host.encode_function)
    if len(found) > 1:
        lines = ", ".join(str(call.lineno) for call in found)
        problems.append(
            f"{file}: class {owner.name} calls {host.encode_function} {len(found)} times (lines "
            f"{lines}), so not all frame features come from {function.name}"
        )
    inside = calls(function, host.encode_function)
    if len(inside) == 1:
        problems += _call_problems(function, inside[0], where, host.encode_function)
    return problems


def _call_problems(function: Function, call: ast.Call, where: str, name: str) -> list[str]:
    """Check that CLIP's features are only reshaped: the fused frames skip all that follows."""
    if ast.unparse(call.func) != f"self.clip.{name}":
        return [f"{where} calls {ast.unparse(call.func)}, not self.clip.{name}"]
    statement = statement_of(function, call)
    if statement not in function.body:
        return [f"{where} calls {name} inside another statement (line {statement.lineno})"]
    for following in function.body[function.body.index(statement) :]:
        for node in ast.walk(following):
            if node is not call and _computes(node):
                return [
                    f"{where} does more than reshape the result of {name} (line "
                    f"{following.lineno}: `{ast.unparse(following).splitlines()[0]}`), which the "
                    "fused frames would skip"
                ]
    return []


def _computes(node: ast.AST) -> bool:
    """Return whether a node does more than reshape or index a tensor."""
    if isinstance(node, ast.Call):
        return not (isinstance(node.func, ast.Attribute) and node.func.attr in _RESHAPING)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Name)
    return isinstance(node, (ast.BinOp, ast.If, ast.For, ast.While, ast.With))


def _num_values(statement: ast.Return) -> int:
    """Return the number of returned values; 0 for none."""
    if statement.value is None:
        return 0
    return len(statement.value.elts) if isinstance(statement.value, ast.Tuple) else 1


def _describe(returns: list[ast.Return]) -> str:
    return " and ".join(f"{_num_values(one)} (line {one.lineno})" for one in returns) or "nothing"
