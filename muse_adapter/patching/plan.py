"""From a checkout to what its files shall hold, and how far it is from there."""

from __future__ import annotations

import difflib
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from muse_adapter.patching import checkout
from muse_adapter.patching.blocks import Block, insert, strip
from muse_adapter.patching.contract import problems_of_clip
from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.hosts import Host
from muse_adapter.patching.places import main_blocks, model_blocks
from muse_adapter.patching.source import Source, parse
from muse_adapter.version import VERSION


@dataclass(frozen=True)
class Change:
    """One file of the checkout, before and after.

    Attributes:
        source: As it is.
        base: Its lines without any block of ours.
        found: The blocks in it.
        wanted: The blocks it shall have.
    """

    source: Source
    base: tuple[str, ...]
    found: tuple[Block, ...]
    wanted: tuple[Block, ...]

    @property
    def after(self) -> tuple[str, ...]:
        """The lines it shall have."""
        return tuple(insert(self.base, self.wanted))

    def diff(self) -> bytes:
        """Unified diff of the user's own file, in its own encoding."""
        name = self.source.name
        lines = []
        for line in difflib.unified_diff(self.source.lines, self.after, f"a/{name}", f"b/{name}"):
            whole = line.endswith(("\n", "\r"))
            lines.append(line if whole else f"{line}\n\\ No newline at end of file\n")
        return "".join(lines).encode(self.source.encoding.removesuffix("-sig"))

    def faults(self) -> list[str]:
        """What of the wanted blocks is not there as it should be, place by place."""
        name, faults = self.source.name, []
        there = {block.place: block for block in self.found}
        for block in self.wanted:
            one = there.pop(block.place, None)
            if one is None:
                faults.append(f"{name}: {block.place} is not there (line {block.index + 1})")
            elif one.version != VERSION:
                faults.append(f"{name}: {block.place} is of version {one.version}")
            elif one.code != block.code:
                faults.append(f"{name}: {block.place} was edited")
            elif one.index != block.index:
                faults.append(f"{name}: {block.place} stands elsewhere (line {one.index + 1})")
        faults += [f"{name}: {place} is unknown" for place in there]
        if len(self.found) != len({block.place for block in self.found}):
            faults.append(f"{name}: a place is there twice")
        if not faults and self.after != self.source.lines:
            faults.append(f"{name}: indentation or line ends of our lines were edited")
        return faults


@dataclass(frozen=True)
class Plan:
    """What a patch would do to a checkout."""

    changes: tuple[Change, ...]

    @property
    def state(self) -> str:
        """ "applied", "not applied" or "partly applied"."""
        if not any(change.found for change in self.changes):
            return "not applied"
        return "partly applied" if self.faults() else "applied"

    def faults(self) -> list[str]:
        """What keeps the patch from being applied, place by place."""
        return [fault for change in self.changes for fault in change.faults()]

    def diff(self) -> bytes:
        """Unified diff of all files."""
        return b"".join(change.diff() for change in self.changes)

    def contents(self) -> dict[Path, tuple[bytes, bytes]]:
        """For `write_all`: the files that change.

        Raises:
            PatchError: A block was edited by hand, or is of a newer version than ours.
        """
        for change in self.changes:
            wanted = {block.place: block for block in change.wanted}
            for block in change.found:
                _check_replaceable(change.source.name, block, wanted.get(block.place))
        return {
            change.source.path: (
                change.source.raw,
                "".join(change.after).encode(change.source.encoding),
            )
            for change in self.changes
            if change.after != change.source.lines
        }


def make_plan(path: str | os.PathLike[str], host: Host) -> Plan:
    """Finds all places of a checkout and checks its contract; writes nothing.

    Raises:
        PatchError: A file or place is not there exactly once, or the checkout does something else
            than CLIP4Clip at these places.
    """
    root = checkout.open_root(path)
    clip = checkout.read(root, host.clip_file, "--clip-file")
    problems = problems_of_clip(parse(clip.name, list(clip.lines)), host, clip.name)
    changes = []
    for source, blocks_of in zip(_targets(root, host), (model_blocks, main_blocks), strict=True):
        base, found = strip(source.name, source.lines)
        wanted, against = blocks_of(parse(source.name, base), base, host, source.name)
        problems += against
        change = Change(source, tuple(base), tuple(found), tuple(wanted))
        parse(f"{source.name} (patched)", list(change.after))
        changes.append(change)
    if problems:
        raise PatchError(_refusal(problems))
    return Plan(tuple(changes))


def unpatched(path: str | os.PathLike[str], host: Host) -> Plan:
    """The plan that takes all our blocks out, wherever they stand and whatever the rest became.

    Raises:
        PatchError: A file is not there, or a marker lost its partner.
    """
    changes = []
    for source in _targets(checkout.open_root(path), host):
        base, found = strip(source.name, source.lines)
        changes.append(Change(source, tuple(base), tuple(found), ()))
    return Plan(tuple(changes))


def restrict(host: Host, **names: str | None) -> Host:
    """The host with the names that the user gave."""
    given = {name: value for name, value in names.items() if value is not None}
    main = given.pop("main_file", None)
    return replace(host, **given, **({"main_files": (main,)} if main else {}))  # type: ignore[arg-type]


def _targets(root: Path, host: Host) -> list[Source]:
    main = checkout.first_of(root, host.main_files, "--main-file")
    return [
        checkout.read(root, host.model_file, "--model-file"),
        checkout.read(root, main, "--main-file"),
    ]


def _check_replaceable(name: str, block: Block, wanted: Block | None) -> None:
    ours, theirs = _numbers(VERSION), _numbers(block.version)
    if theirs > ours:
        raise PatchError(
            f"{name}: the block {block.place} was written by muse-adapter {block.version}, newer "
            f"than this one ({VERSION}); use that version or a later one"
        )
    if wanted is not None and theirs == ours and block.code != wanted.code:
        raise PatchError(
            f"{name}: the block {block.place} was edited by hand and would be overwritten; move "
            "your lines out of the markers, or take all blocks out first (--reverse)"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def _refusal(problems: list[str]) -> str:
    lines = "".join(f"\n  {problem}" for problem in problems)
    return (
        "this checkout has the places but not CLIP4Clip's contract:"
        f"{lines}\nNothing was changed. By hand: where the frame features of a video are made, "
        "call encode_image so that it gives all projected tokens, and let "
        "model.muse.forward_features(tokens (B, T, 1+H*W, C), video_mask) take the place of the "
        "class features; examples/README.md has the six lines and what each does"
    )
