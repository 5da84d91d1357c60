"""Text and JSON of files that may be missing or damaged: one error that names the file."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

LISTED = 5  # how many of the faulty files or lines a message names


def check_present(expected: Mapping[Path, str]) -> None:
    """Check that files exist.

    Args:
        expected: What each file holds.

    Raises:
        FileNotFoundError: Some do not; names all of them.
    """
    missing = [f"{path}: {content}" for path, content in expected.items() if not path.is_file()]
    if missing:
        raise FileNotFoundError("missing are\n  " + "\n  ".join(missing))


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte order mark.

    Raises:
        OSError: It cannot be read.
        ValueError: It is not UTF-8.
    """
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 ({error.reason} at byte {error.start}): save it as UTF-8"
        ) from error


def read_names(path: Path) -> list[str]:
    """Read a list of videos, one name a line.

    Raises:
        ValueError: It is empty, or repeats a name.
    """
    names = [line.strip() for line in io.StringIO(read_text(path)) if line.strip()]
    if not names:
        raise ValueError(f"{path}: there are no videos")
    if len(set(names)) < len(names):
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{path}: videos must be listed once, repeated are {some_of(repeated)}")
    return names


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file.

    Args:
        path: The file.
        kind: `dict` or `list`, which its value must be.

    Raises:
        ValueError: It is not JSON, or another value.
    """
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, kind):
        names: dict[type, str] = {dict: "an object", list: "a list"}
        raise ValueError(f"{path}: expected {names[kind]}, got {type(value).__name__}")
    return value


def some_of(values: Sequence[str]) -> str:
    """List the first values and say how many more there are."""
    more = f" and {len(values) - LISTED} more" if len(values) > LISTED else ""
    return ", ".join(values[:LISTED]) + more
