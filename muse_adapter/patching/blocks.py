"""Blocks of lines between marker comments: inserted, and removed again byte for byte."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.source import comment_lines, line_ending
from muse_adapter.version import VERSION

_BEGIN = re.compile(r"[ \t]*# >>> muse-adapter (\S{1,40}) (\S+)[ \t]*")
_END = re.compile(r"[ \t]*# <<< muse-adapter (\S+)[ \t]*")


@dataclass(frozen=True)
class Block:
    """An inserted block of lines.

    Attributes:
        name: Its name, such as "attach".
        index: Index of the line before which it is inserted, in the file without blocks.
        code: Its lines between the markers, without indentation and line endings.
        indent: Indentation of its lines.
        version: Version of the package that wrote it.
        line: Number of its first marker in the file; 0 if it is not in the file.
    """

    name: str
    index: int
    code: tuple[str, ...]
    indent: str = ""
    version: str = VERSION
    line: int = field(default=0, compare=False)


def insert(lines: Sequence[str], blocks: Sequence[Block]) -> list[str]:
    """Insert blocks into the lines of a file; each uses the line ending of its neighbours."""
    result = list(lines)
    for block in sorted(blocks, key=lambda block: block.index, reverse=True):
        endings = [line_ending(line) for line in lines[max(block.index - 1, 0) : block.index + 1]]
        ending = next(filter(None, endings), "") or line_ending(lines[0]) or "\n"
        text = [
            f"# >>> muse-adapter {block.version} {block.name}",
            *block.code,
            f"# <<< muse-adapter {block.name}",
        ]
        new = [f"{block.indent}{line}{ending}" for line in text]
        if block.index == len(lines) and lines and not line_ending(lines[-1]):
            # After a last line without an ending: it gets one, and the block's last line has none.
            result[block.index - 1] += ending
            new[-1] = new[-1][: -len(ending)]
        result[block.index : block.index] = new
    return result


def strip(file: str, lines: Sequence[str]) -> tuple[list[str], list[Block]]:
    """Remove all blocks from the lines of a file.

    Returns:
        The remaining lines, and the removed blocks.

    Raises:
        PatchError: A begin or end marker is unpaired, or stands inside a string.
    """
    _check_markers(file, lines)
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
            blocks.append(Block(header[2], len(result), code, version=header[1], line=start + 1))
            if number == len(lines) - 1 and not line_ending(line) and result:
                result[-1] = result[-1].rstrip("\r\n")
            header = None
        elif begin or end:
            raise _unpaired(file, number)
        elif header is None:
            result.append(line)
    if header is not None:
        raise _unpaired(file, start)
    return result, blocks


def _check_markers(file: str, lines: Sequence[str]) -> None:
    """Check that lines that look like markers are comments."""
    markers = [
        number
        for number, line in enumerate(lines)
        if _BEGIN.fullmatch(bare := line.rstrip("\r\n")) or _END.fullmatch(bare)
    ]
    if not markers:
        return
    comments = comment_lines(file, lines)
    for number in markers:
        if number not in comments:
            raise PatchError(
                f"{file}, line {number + 1}: a marker of muse-adapter inside a string, where it "
                "cannot be told from your text; change the string"
            )


def _unpaired(file: str, number: int) -> PatchError:
    return PatchError(
        f"{file}, line {number + 1}: unpaired marker of muse-adapter; restore the other marker, or "
        "remove the lines of this block by hand"
    )
