"""Python files as bytes, text and lines, converted without loss."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from dataclasses import dataclass
from pathlib import Path

from muse_adapter.patching.errors import PatchError

# Only the line endings of Python: str.splitlines also splits at form feeds.
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")


@dataclass(frozen=True)
class Source:
    """A Python file of the checkout.

    Attributes:
        name: Path relative to the checkout, for messages.
        path: Its path, links resolved.
        raw: Its bytes.
        encoding: The encoding by Python's rules, such as "utf-8-sig" with a byte order mark.
        lines: Its lines, with their endings.
    """

    name: str
    path: Path
    raw: bytes
    encoding: str
    lines: tuple[str, ...]


def decode(name: str, path: Path, raw: bytes) -> Source:
    """Decode a file by Python's rules.

    Raises:
        PatchError: It is not in its declared encoding, or not UTF-8 without a declaration.
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
        raise PatchError(f"{name} cannot be decoded and encoded as {encoding} unchanged; {_ADVICE}")
    return Source(name, path, raw, encoding, tuple(split_lines(text)))


_ADVICE = "save it as UTF-8, or declare its encoding in the first line (# -*- coding: ... -*-)"


def split_lines(text: str) -> list[str]:
    """Split a text into lines that keep their endings."""
    return _LINE.findall(text)


def line_ending(line: str) -> str:
    """Return the ending of a line; empty if it has none."""
    return line[len(line.rstrip("\r\n")) :]


def parse(name: str, lines: list[str]) -> ast.Module:
    """Parse lines into a syntax tree.

    Raises:
        PatchError: They do not compile with this Python.
    """
    text = "".join(lines)
    try:
        with warnings.catch_warnings():  # such as those for "\d" in the user's strings
            warnings.simplefilter("ignore")
            compile(text, name, "exec", dont_inherit=True)
            return ast.parse(text, name)
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise PatchError(f"{name}{where} does not compile: {error}") from error
