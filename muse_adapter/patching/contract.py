"""What a checkout must do, beside having the places: checked in the syntax tree too.

A fork may have all six places and still mean something else by them; a patch would then be silently
wrong. Each check returns the reasons against it, in words.
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

# Methods that change the shape or type of a tensor and nothing else.
_RESHAPING = {
    *("view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "contiguous"),
    *("float", "to", "type", "size"),
}


def problems_of_clip(tree: ast.Module, host: Host, file: str) -> list[str]:
    """CLIP's encode_image must give, when asked, the pair (class features, all tokens)."""
    owner = find_class(tree, host.clip_class, file, "--clip-class")
    function = find_function(owner, host.encode_function, file, "--encode-function")
    where = f"{file}, line {function.lineno}: {host.encode_function}"
    lacking = [n for n in ("return_hidden", "video_frame") if n not in parameters(function)]
    if lacking:
        return [f"{where} has no parameter {' and no '.join(lacking)}"]
    asked = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.If)
        and isinstance(node.test, ast.Name)
        and node.test.id == "return_hidden"
    ]
    pairs = [_width(one) for branch in asked for one in branch.body if isinstance(one, ast.Return)]
    if pairs != [2]:
        return [
            f"{where} does not return the pair (class features, all tokens) under `if "
            "return_hidden:`, so its tokens mean something else here"
        ]
    others = [_width(one) for one in statements(function) if isinstance(one, ast.Return)]
    if sorted(others) != [1, 2]:
        return [f"{where} returns something else than class features without return_hidden"]
    return []


def problems_of_visual(owner: ast.ClassDef, function: Function, host: Host, file: str) -> list[str]:
    """Frames and mask must go in, one value come out, and nothing stand behind CLIP's features."""
    where = f"{file}, line {function.lineno}: {function.name}"
    wanted = ["self", "video", "video_mask", "shaped", "video_frame"]
    given = parameters(function)
    problems = []
    if missing := [name for name in wanted if name not in given and name != "shaped"]:
        problems.append(f"{where} has no parameter {', '.join(missing)}")
    if extra := [name for name in given if name not in wanted]:
        problems.append(f"{where} also takes {', '.join(extra)}, which the head would not see")
    returns = [one for one in statements(function) if isinstance(one, ast.Return)]
    if [_width(one) for one in returns] != [1]:
        problems.append(f"{where} must return one value, once; it returns {_returned(returns)}")
    found = calls(owner, host.encode_function)
    if len(found) > 1:
        lines = ", ".join(str(call.lineno) for call in found)
        problems.append(
            f"{file}: class {owner.name} calls {host.encode_function} {len(found)} times (lines "
            f"{lines}), so frame features do not all go through {function.name}"
        )
    inside = calls(function, host.encode_function)
    if len(inside) == 1:
        problems += _around(function, inside[0], where, host.encode_function)
    return problems


def _around(function: Function, call: ast.Call, where: str, name: str) -> list[str]:
    """From CLIP's features to the return there may be reshaping only: all else would be skipped."""
    if ast.unparse(call.func) != f"self.clip.{name}":
        return [f"{where} calls {ast.unparse(call.func)}, not self.clip.{name}"]
    statement = statement_of(function, call)
    if statement not in function.body:
        return [f"{where} calls {name} inside another statement (line {statement.lineno})"]
    for one in function.body[function.body.index(statement) :]:
        for node in ast.walk(one):
            if node is not call and _does_more(node):
                return [
                    f"{where} does more than reshape what {name} gives (line {one.lineno}: "
                    f"`{ast.unparse(one).splitlines()[0]}`), which the fused frames would skip"
                ]
    return []


def _does_more(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return not (isinstance(node.func, ast.Attribute) and node.func.attr in _RESHAPING)
    if isinstance(node, ast.Subscript):
        return isinstance(node.value, ast.Name)
    return isinstance(node, (ast.BinOp, ast.If, ast.For, ast.While, ast.With))


def _width(statement: ast.Return) -> int:
    """How many values a return gives; 0 for none."""
    if statement.value is None:
        return 0
    return len(statement.value.elts) if isinstance(statement.value, ast.Tuple) else 1


def _returned(returns: list[ast.Return]) -> str:
    return " and ".join(f"{_width(one)} (line {one.lineno})" for one in returns) or "nothing"
