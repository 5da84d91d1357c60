"""The six places, each found by the syntax tree, and the line that goes there."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from muse_adapter.patching.blocks import Block
from muse_adapter.patching.contract import problems_of_visual
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import Host
from muse_adapter.patching.search import (
    Function,
    calls,
    find_class,
    find_function,
    only,
    parameters,
    statement_of,
    statements,
)

OURS = "muse_adapter.clip4clip"


def model_blocks(
    tree: ast.Module, lines: Sequence[str], host: Host, file: str
) -> tuple[list[Block], list[str]]:
    """The blocks of the model file, and the reasons against them.

    Raises:
        PatchError: A place is not there exactly once.
    """
    owner = find_class(tree, host.model_class, file, "--model-class")
    init = find_function(owner, "__init__", file)
    visual = find_function(owner, host.visual_function, file, "--visual-function")

    pattern = "self.apply(self.init_weights)"
    applied = [call for call in calls(init, "apply") if ast.unparse(call) == pattern]
    if not applied:
        raise PatchError(f"{file}: expected {pattern} in {owner.name}.__init__, found none")
    last = max(applied, key=lambda call: call.lineno)
    outer = next(one for one in init.body if any(part is last for part in ast.walk(one)))
    encode = only(
        calls(visual, host.encode_function),
        file,
        f"call of {host.encode_function} in {visual.name}",
        "another is named with --encode-function",
    )
    usual = host.encode_function == Host.encode_function
    encoder = "" if usual else f", encode={host.encode_function!r}"
    blocks = [
        _imports(tree, lines, file),
        _after("attach", outer, lines, file, f"{OURS}.attach(self, self.task_config)"),
        _before(
            "fused_frames",
            statement_of(visual, encode),
            lines,
            file,
            f"if self.muse is not None: return {OURS}.fused_frames("
            f"self, video, video_mask, video_frame{encoder})",
        ),
    ]
    problems = problems_of_visual(owner, visual, host, file)
    if not _assigns_task_config(init):
        problems.append(f"{file}, line {init.lineno}: {owner.name}.__init__ sets no task_config")
    return blocks, problems


def main_blocks(
    tree: ast.Module, lines: Sequence[str], host: Host, file: str
) -> tuple[list[Block], list[str]]:
    """The blocks of the main script, and the reasons against them.

    Raises:
        PatchError: A place is not there exactly once.
    """
    arguments = find_function(tree, host.args_function, file, "--args-function")
    optimizer = find_function(tree, host.optimizer_function, file, "--optimizer-function")
    parse = only(calls(arguments, "parse_args"), file, f"call of parse_args in {arguments.name}")
    make = only(
        calls(optimizer, host.optimizer_class),
        file,
        f"call of {host.optimizer_class} in {optimizer.name}",
        "another is named with --optimizer-class",
    )
    problems = []
    if lacking := [n for n in ("args", "model") if n not in parameters(optimizer)]:
        problems.append(
            f"{file}, line {optimizer.lineno}: {optimizer.name} has no parameter "
            f"{' and no '.join(lacking)}"
        )
    parser = parse.func.value if isinstance(parse.func, ast.Attribute) else None
    groups = make.args[0] if make.args else None
    for node, what in (
        (parser, f"line {parse.lineno}: parse_args must be called on a variable"),
        (groups, f"line {make.lineno}: the groups of {host.optimizer_class} must be a variable"),
    ):
        if not isinstance(node, ast.Name):
            raise PatchError(f"{file}, {what}, got {ast.unparse(node) if node else 'none'}")
    assert isinstance(parser, ast.Name) and isinstance(groups, ast.Name)
    blocks = [
        _imports(tree, lines, file),
        _before(
            "arguments",
            statement_of(arguments, parse),
            lines,
            file,
            f"{OURS}.add_arguments({parser.id})",
        ),
        _before(
            "optimizer",
            statement_of(optimizer, make),
            lines,
            file,
            f"{groups.id} = {OURS}.regroup({groups.id}, model, args)",
        ),
    ]
    return blocks, problems


def _imports(tree: ast.Module, lines: Sequence[str], file: str) -> Block:
    """Behind the imports at the top of the file."""
    last = None
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            last = node
        elif isinstance(node, (ast.ClassDef, Function)):
            break
    if last is None:
        raise PatchError(f"{file}: expected an import before the first class or function")
    return _after("import", last, lines, file, f"import {OURS}")


def _before(place: str, statement: ast.stmt, lines: Sequence[str], file: str, code: str) -> Block:
    indent = _indent(statement, lines, file)
    return Block(place, statement.lineno - 1, (code,), indent)


def _after(place: str, statement: ast.stmt, lines: Sequence[str], file: str, code: str) -> Block:
    indent = _indent(statement, lines, file)
    assert statement.end_lineno is not None
    return Block(place, statement.end_lineno, (code,), indent)


def _indent(statement: ast.stmt, lines: Sequence[str], file: str) -> str:
    """What stands before a statement, which must have its lines for itself."""
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    # The tree counts bytes of UTF-8.
    before = lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
    behind = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip()
    if before.strip() or (behind and not behind.startswith("#")):
        raise PatchError(
            f"{file}, line {statement.lineno}: `{ast.unparse(statement).splitlines()[0]}` shares "
            "its line with other code; give it a line of its own"
        )
    return before


def _assigns_task_config(init: Function) -> bool:
    targets = (
        target for one in statements(init) if isinstance(one, ast.Assign) for target in one.targets
    )
    return any(ast.unparse(target) == "self.task_config" for target in targets)
