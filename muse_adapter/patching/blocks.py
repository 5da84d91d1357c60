"""Our lines in a file: between marker comments, put in and taken out again byte for byte."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.source import line_end
from muse_adapter.version import VERSION

_BEGIN = re.compile(r"[ \t]*# >>> muse-adapter (\S+) (\S+)[ \t]*")
_END = re.compile(r"[ \t]*# <<< muse-adapter (\S+)[ \t]*")


@dataclass(frozen=True)
class Block:
    """One insertion.

    Attributes:
        place: Its name, such as "attach".
        index: It stands before this line (from 0) of the file without blocks.
        code: Its lines between the markers, without indentation and line ends.
        indent: What stands before each of its lines.
        version: Of the package that wrote it.
    """

    place: str
    index: int
    code: tuple[str, ...]
    indent: str = ""
    version: str = VERSION


def insert(lines: Sequence[str], blocks: Sequence[Block]) -> list[str]:
    """The file with blocks; each takes the line end of its neighbourhood."""
    result = list(lines)
    for block in sorted(blocks, key=lambda block: block.index, reverse=True):
        ends = [line_end(line) for line in lines[max(block.index - 1, 0) : block.index + 1]]
        end = next(filter(None, ends), "") or line_end(lines[0]) or "\n"
        text = [
            f"# >>> muse-adapter {block.version} {block.place}",
            *block.code,
            f"# <<< muse-adapter {block.place}",
        ]
        new = [f"{block.indent}{line}{end}" for line in text]
        if block.index == len(lines) and lines and not line_end(lines[-1]):
            # Behind a last line without end: that line gets one, our last line goes without.
            result[block.index - 1] += end
            new[-1] = new[-1][: -len(end)]
        result[block.index : block.index] = new
    return result


def strip(name: str, lines: Sequence[str]) -> tuple[list[str], list[Block]]:
    """The file without blocks, and the blocks that were in it.

    Raises:
        PatchError: A marker without its partner.
    """
    result: list[str] = []
    blocks: list[Block] = []
    start, header = 0, None
    for number, line in enumerate(lines):
        bare = line.rstrip("\r\n")
        begin, end = _BEGIN.fullmatch(bare), _END.fullmatch(bare)
        if header is None and begin:
            start, header = number, begin
        elif header is not None and end and end[1] == header[2]:
            code = tuple(inner.strip() for inner in lines[start + 1 : number])
            blocks.append(Block(header[2], len(result), code, version=header[1]))
            if number == len(lines) - 1 and not line_end(line) and result:
                result[-1] = result[-1].rstrip("\r\n")
            header = None
        elif begin or end:
            raise _unpaired(name, number)
        elif header is None:
            result.append(line)
    if header is not None:
        raise _unpaired(name, start)
    return result, blocks


def _unpaired(name: str, number: int) -> PatchError:
    return PatchError(
        f"{name}, line {number + 1}: a marker of muse-adapter without its partner; restore it, or "
        "take the lines of that block out by hand"
    )
