"""Python files as bytes, text and lines, converted without loss."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from collections.abc import Sequence
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
        encoded = text.encode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise PatchError(
            f"{name} is not {encoding}: byte 0x{raw[error.start]:02x} in line {line}; {_ADVICE}"
        ) from error
    except (LookupError, ValueError) as error:  # codecs of no text (rot13), or of one direction
        raise PatchError(f"{name} cannot be read as {encoding}: {error}; {_ADVICE}") from error
    if encoded != raw:
        raise PatchError(f"{name} cannot be decoded and encoded as {encoding} unchanged; {_ADVICE}")
    return Source(name, path, raw, encoding, tuple(split_lines(text)))


_ADVICE = "save it as UTF-8, or declare its encoding in the first line (# -*- coding: ... -*-)"


# What Python's parser and compiler, and walks through the tree, give up on.
TOO_DEEP = "an expression in it is nested too deeply"


def split_lines(text: str) -> list[str]:
    """Split a text into lines that keep their endings."""
    return _LINE.findall(text)


def line_ending(line: str) -> str:
    """Return the ending of a line; empty if it has none."""
    return line[len(line.rstrip("\r\n")) :]


def comment_lines(name: str, lines: Sequence[str]) -> set[int]:
    """Return the indices of the lines that contain a comment, as opposed to a string with a `#`.

    Raises:
        PatchError: They cannot be split into tokens.
    """
    # Line endings of every kind become the one that all tokenizers know.
    texts = iter([line.rstrip("\r\n") + "\n" for line in lines])
    try:
        tokens = list(tokenize.generate_tokens(lambda: next(texts, "")))
    except (tokenize.TokenError, SyntaxError, RecursionError, MemoryError) as error:
        raise PatchError(f"{name} is not Python, so its markers cannot be told: {error}") from error
    return {token.start[0] - 1 for token in tokens if token.type == tokenize.COMMENT}


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
    except (RecursionError, MemoryError) as error:
        raise PatchError(f"{name} does not compile: {TOO_DEEP}") from error
    except (SyntaxError, ValueError) as error:
        where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        raise PatchError(f"{name}{where} does not compile: {error}") from error
