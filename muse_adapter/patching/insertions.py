"""The six insertion points, found in the syntax tree, and the line inserted at each."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence

from muse_adapter.patching.blocks import Block
from muse_adapter.patching.contract import visual_problems
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import Host
from muse_adapter.patching.search import (
    Function,
    calls,
    exactly_one,
    find_class,
    find_function,
    parameters,
    statement_of,
    statements,
)

MODULE = "muse_adapter.clip4clip"


_CALL = re.escape(f"{MODULE}.")
# By name of the block: its one line, in every version so far, whatever the names in the checkout.
WRITTEN = {
    "import": re.compile(rf"import {re.escape(MODULE)}"),
    "attach": re.compile(rf"{_CALL}attach\(self, self\.task_config\)"),
    "fused_frames": re.compile(
        rf"if self\.muse is not None: return {_CALL}fused_frames\("
        r"self, video, video_mask, video_frame(, encode='\w+')?\)"
    ),
    "arguments": re.compile(rf"{_CALL}add_arguments\(\w+\)"),
    "optimizer": re.compile(rf"(\w+) = {_CALL}regroup\(\1, model, args\)"),
}


def is_ours(block: Block) -> bool:
    """Return whether a block in a file contains what this package wrote, and nothing else."""
    if block.name not in WRITTEN or len(block.code) != 1:
        return False
    return WRITTEN[block.name].fullmatch(block.code[0]) is not None


def model_blocks(
    tree: ast.Module, lines: Sequence[str], host: Host, file: str
) -> tuple[list[Block], list[str]]:
    """Find the insertion points of the model file.

    Args:
        tree: Syntax tree of the file without blocks.
        lines: Its lines.
        host: Names in the checkout.
        file: Name of the file, for messages.

    Returns:
        The blocks to insert, and problems that speak against it, in words.

    Raises:
        PatchError: An insertion point does not exist exactly once.
    """
    owner = find_class(tree, host.model_class, file, "--model-class")
    init = find_function(owner, "__init__", file)
    visual = find_function(owner, host.visual_function, file, "--visual-function")

    pattern = "self.apply(self.init_weights)"
    applied = [call for call in calls(init, "apply") if ast.unparse(call) == pattern]
    if not applied:
        raise PatchError(f"{file}: expected {pattern} in {owner.name}.__init__, found none")
    last = max(applied, key=lambda call: call.lineno)
    outer = next(one for one in init.body if any(node is last for node in ast.walk(one)))
    encode = exactly_one(
        calls(visual, host.encode_function),
        file,
        f"call of {host.encode_function} in {visual.name}",
        "name another with --encode-function",
    )
    is_default = host.encode_function == Host.encode_function
    encode_argument = "" if is_default else f", encode={host.encode_function!r}"
    blocks = [
        _import_block(tree, lines, file),
        _after("attach", outer, lines, file, f"{MODULE}.attach(self, self.task_config)"),
        _before(
            "fused_frames",
            statement_of(visual, encode),
            lines,
            file,
            f"if self.muse is not None: return {MODULE}.fused_frames("
            f"self, video, video_mask, video_frame{encode_argument})",
        ),
    ]
    problems = visual_problems(owner, visual, host, file)
    if not _assigns_task_config(init):
        problems.append(f"{file}, line {init.lineno}: {owner.name}.__init__ sets no task_config")
    return blocks, problems


def main_blocks(
    tree: ast.Module, lines: Sequence[str], host: Host, file: str
) -> tuple[list[Block], list[str]]:
    """Find the insertion points of the main script.

    Args:
        tree: Syntax tree of the file without blocks.
        lines: Its lines.
        host: Names in the checkout.
        file: Name of the file, for messages.

    Returns:
        The blocks to insert, and problems that speak against it, in words.

    Raises:
        PatchError: An insertion point does not exist exactly once.
    """
    arguments = find_function(tree, host.args_function, file, "--args-function")
    optimizer = find_function(tree, host.optimizer_function, file, "--optimizer-function")
    parse = exactly_one(
        calls(arguments, "parse_args"), file, f"call of parse_args in {arguments.name}"
    )
    construct = exactly_one(
        calls(optimizer, host.optimizer_class),
        file,
        f"call of {host.optimizer_class} in {optimizer.name}",
        "name another with --optimizer-class",
    )
    problems = []
    if missing := [n for n in ("args", "model") if n not in parameters(optimizer)]:
        problems.append(
            f"{file}, line {optimizer.lineno}: {optimizer.name} has no parameter "
            f"{' and no '.join(missing)}"
        )
    parser = parse.func.value if isinstance(parse.func, ast.Attribute) else None
    groups = construct.args[0] if construct.args else None
    for node, rule in (
        (parser, f"line {parse.lineno}: parse_args must be called on a variable"),
        (
            groups,
            f"line {construct.lineno}: the groups of {host.optimizer_class} must be a variable",
        ),
    ):
        if not isinstance(node, ast.Name):
            raise PatchError(f"{file}, {rule}, got {ast.unparse(node) if node else 'none'}")
    assert isinstance(parser, ast.Name) and isinstance(groups, ast.Name)
    blocks = [
        _import_block(tree, lines, file),
        _before(
            "arguments",
            statement_of(arguments, parse),
            lines,
            file,
            f"{MODULE}.add_arguments({parser.id})",
        ),
        _before(
            "optimizer",
            statement_of(optimizer, construct),
            lines,
            file,
            f"{groups.id} = {MODULE}.regroup({groups.id}, model, args)",
        ),
    ]
    return blocks, problems


def _import_block(tree: ast.Module, lines: Sequence[str], file: str) -> Block:
    """Return the block after the imports at the top of the file."""
    last = None
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            last = node
        elif isinstance(node, (ast.ClassDef, Function)):
            break
    if last is None:
        raise PatchError(f"{file}: expected an import before the first class or function")
    return _after("import", last, lines, file, f"import {MODULE}")


def _before(name: str, statement: ast.stmt, lines: Sequence[str], file: str, code: str) -> Block:
    indent = _indent(statement, lines, file)
    return Block(name, statement.lineno - 1, (code,), indent)


def _after(name: str, statement: ast.stmt, lines: Sequence[str], file: str, code: str) -> Block:
    indent = _indent(statement, lines, file)
    assert statement.end_lineno is not None
    return Block(name, statement.end_lineno, (code,), indent)


def _indent(statement: ast.stmt, lines: Sequence[str], file: str) -> str:
    """Return the indentation of a statement, which must not share its lines with others."""
    assert statement.end_lineno is not None and statement.end_col_offset is not None
    # Columns in the tree are offsets in UTF-8 bytes.
    before = lines[statement.lineno - 1].encode()[: statement.col_offset].decode()
    after = lines[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode().strip()
    if before.strip() or (after and not after.startswith("#")):
        raise PatchError(
            f"{file}, line {statement.lineno}: `{ast.unparse(statement).splitlines()[0]}` shares "
            "its line with other code; move it to a line of its own"
        )
    return before


def _assigns_task_config(init: Function) -> bool:
    targets = (
        target for one in statements(init) if isinstance(one, ast.Assign) for target in one.targets
    )
    return any(ast.unparse(target) == "self.task_config" for target in targets)
