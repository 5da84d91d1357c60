"""A Python file as bytes, text and lines, without losing anything on the way."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path

from muse_adapter.patching.errors import PatchError

# Python's own line ends, and no others: str.splitlines would also split at form feeds.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Source:
    """One file of the checkout.

    Attributes:
        name: As shown to the user, relative to the checkout.
        path: Where it lies, links resolved.
        raw: Its bytes.
        encoding: As Python reads it (a byte order mark included).
        lines: Its text, each line with its own end.
    """

    name: str
    path: Path
    raw: bytes
    encoding: str
    lines: tuple[str, ...]


def decode(name: str, path: Path, raw: bytes) -> Source:
    """Reads bytes as Python does.

    Raises:
        PatchError: Not in the encoding it declares, or not UTF-8 where it declares none.
    """
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(raw).readline)
    except SyntaxError as error:
        raise PatchError(f"{name} cannot be read as Python: {error}; {_ADVICE}") from error
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PatchError(
            f"{name} is not {encoding}: byte 0x{raw[error.start]:02x} in line {line}; {_ADVICE}"
        ) from error
    if text.encode(encoding) != raw:
        raise PatchError(f"{name} does not survive reading and writing as {encoding}; {_ADVICE}")
    return Source(name, path, raw, encoding, tuple(split_lines(text)))


_ADVICE = "save it as UTF-8, or name its encoding in the first line (# -*- coding: ... -*-)"


def split_lines(text: str) -> list[str]:
    """Lines with their ends; joined they are the text."""
    return _LINE.findall(text)


def line_end(line: str) -> str:
    """The end of one line; empty for a last line without."""
    return line[len(line.rstrip("\r\n")) :]


def parse(name: str, lines: list[str]) -> ast.Module:
    """The syntax tree.

    Raises:
        PatchError: It does not compile here.
    """
    text = "".join(lines)
    try:
        with warnings.catch_warnings():  # such as "\d" in the user's own strings
            warnings.simplefilter("ignore")
            compile(text, name, "exec", dont_inherit=True)
            return ast.parse(text, name)
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise PatchError(f"{name}{where} does not compile: {error}") from error
