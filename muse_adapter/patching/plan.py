"""Plan the changes of a checkout, and compare its present state with them."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from muse_adapter.patching import checkout
from muse_adapter.patching.blocks import Block, insert, strip
from muse_adapter.patching.contract import clip_problems
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import Host
from muse_adapter.patching.insertions import is_ours, main_blocks, model_blocks
from muse_adapter.patching.source import TOO_DEEP, Source, parse
from muse_adapter.version import VERSION


@dataclass(frozen=True)
class Change:
    """The change of one file.

    Attributes:
        source: The file as it is.
        base: Its lines without blocks.
        found: The blocks in it.
        expected: The blocks it should contain.
    """

    source: Source
    base: tuple[str, ...]
    found: tuple[Block, ...]
    expected: tuple[Block, ...]

    @property
    def after(self) -> tuple[str, ...]:
        """Lines of the file after the change."""
        return tuple(insert(self.base, self.expected))

    def diff(self) -> bytes:
        """Return the unified diff of the file, in its own encoding."""
        name = self.source.name
        lines = []
        for line in difflib.unified_diff(self.source.lines, self.after, f"a/{name}", f"b/{name}"):
            complete = line.endswith(("\n", "\r"))
            lines.append(line if complete else f"{line}\n\\ No newline at end of file\n")
        return "".join(lines).encode(self.source.encoding.removesuffix("-sig"))

    def mismatches(self) -> list[str]:
        """Return one line for each expected block that is missing or differs."""
        file, lines = self.source.name, []
        found = {block.name: block for block in self.found}
        for block in self.expected:
            actual = found.pop(block.name, None)
            if actual is None:
                lines.append(f"{file}: {block.name} is missing (line {block.index + 1})")
            elif actual.version != VERSION:
                lines.append(f"{file}: {block.name} is of version {actual.version}")
            elif actual.code != block.code:
                lines.append(f"{file}: {block.name} was edited")
            elif actual.index != block.index:
                lines.append(f"{file}: {block.name} is in another place (line {actual.index + 1})")
        lines += [f"{file}: {name} is unknown" for name in found]
        if len(self.found) != len({block.name for block in self.found}):
            lines.append(f"{file}: a block occurs twice")
        if not lines and self.after != self.source.lines:
            lines.append(f"{file}: indentation or line endings of inserted lines were edited")
        return lines


@dataclass(frozen=True)
class Plan:
    """The changes of a checkout."""

    changes: tuple[Change, ...]

    @property
    def state(self) -> str:
        """State of the checkout: "applied", "not applied" or "partly applied"."""
        if not any(change.found for change in self.changes):
            return "not applied"
        return "partly applied" if self.mismatches() else "applied"

    def mismatches(self) -> list[str]:
        """Return one line for each block that is missing or differs."""
        return [line for change in self.changes for line in change.mismatches()]

    def diff(self) -> bytes:
        """Return the unified diff of all files."""
        return b"".join(change.diff() for change in self.changes)

    def contents(self) -> dict[Path, tuple[bytes, bytes]]:
        """Return the present and the new content of the files that change, for `replace_files`.

        Raises:
            PatchError: A block contains what this package did not write, or is of a newer version.
        """
        for change in self.changes:
            expected = {block.name: block for block in change.expected}
            for block in change.found:
                _check_removable(change.source.name, block, expected.get(block.name))
        return {
            change.source.path: (
                change.source.raw,
                "".join(change.after).encode(change.source.encoding),
            )
            for change in self.changes
            if change.after != change.source.lines
        }


def make_plan(path: str | os.PathLike[str], host: Host) -> Plan:
    """Plan the patch of a checkout, without writing anything.

    Args:
        path: Folder of the checkout.
        host: Names in it.

    Raises:
        PatchError: A file or an insertion point does not exist exactly once, or the checkout does
            not behave like CLIP4Clip there.
    """
    root = checkout.resolve_root(path)
    try:
        changes, problems = _find_changes(root, host)
    except RecursionError as error:
        raise PatchError(f"a file of {root} cannot be read: {TOO_DEEP}") from error
    if problems:
        raise PatchError(_contract_message(problems))
    return Plan(tuple(changes))


def _find_changes(root: Path, host: Host) -> tuple[list[Change], list[str]]:
    clip = checkout.read(root, host.clip_file, "--clip-file")
    problems = clip_problems(parse(clip.name, list(clip.lines)), host, clip.name)
    changes = []
    for source, find_blocks in zip(_targets(root, host), (model_blocks, main_blocks), strict=True):
        base, found = strip(source.name, source.lines)
        expected, more = find_blocks(parse(source.name, base), base, host, source.name)
        problems += more
        change = Change(source, tuple(base), tuple(found), tuple(expected))
        parse(f"{source.name} (patched)", list(change.after))
        changes.append(change)
    return changes, problems


def make_reverse_plan(path: str | os.PathLike[str], host: Host) -> Plan:
    """Plan the removal of all blocks, wherever they are, without checking the rest of the files.

    Args:
        path: Folder of the checkout.
        host: Names in it.

    Raises:
        PatchError: A file is missing, or a marker is unpaired.
    """
    changes = []
    for source in _targets(checkout.resolve_root(path), host):
        base, found = strip(source.name, source.lines)
        changes.append(Change(source, tuple(base), tuple(found), ()))
    return Plan(tuple(changes))


def override_names(host: Host, **names: str | None) -> Host:
    """Return the host with other names, where given; `main_file` replaces `main_files`."""
    given = {name: value for name, value in names.items() if value is not None}
    main = given.pop("main_file", None)
    return replace(host, **given, **({"main_files": (main,)} if main else {}))  # type: ignore[arg-type]


def _targets(root: Path, host: Host) -> list[Source]:
    main = checkout.find_existing(root, host.main_files, "--main-file")
    sources = [
        checkout.read(root, host.model_file, "--model-file"),
        checkout.read(root, main, "--main-file"),
    ]
    if sources[0].path == sources[1].path:
        raise PatchError(f"{host.model_file} and {main} are the same file, {sources[0].path}")
    return sources


def _check_removable(file: str, block: Block, expected: Block | None) -> None:
    """Check that removing a block, or replacing it by `expected`, deletes only our own lines."""
    if _version_tuple(block.version) > _version_tuple(VERSION):
        raise PatchError(
            f"{file}: the block {block.name} was written by muse-adapter {block.version}, newer "
            f"than this one ({VERSION}); use that version or a later one"
        )
    same_version = expected is not None and block.version == VERSION
    if not is_ours(block) or (same_version and block.code != expected.code):  # type: ignore[union-attr]
        lines = "".join(f"\n  {line}" for line in block.code) or "\n  (no line)"
        raise PatchError(
            f"{file}, line {block.line}: the block {block.name} was edited by hand; nothing was "
            f"written. Between its markers stands{lines}\nMove your lines out of the markers, or "
            "delete the block by hand"
        )


def _version_tuple(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _contract_message(problems: list[str]) -> str:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return (
        "this checkout has the insertion points but does not behave like CLIP4Clip there:"
        f"{lines}\nNothing was changed. To add the head by hand: where the frame features of a "
        "video are computed, call encode_image with return_hidden=True, and replace the class "
        "features by model.muse.forward_features(tokens (B, T, 1+H*W, C), video_mask); "
        "examples/README.md explains the six inserted lines"
    )
