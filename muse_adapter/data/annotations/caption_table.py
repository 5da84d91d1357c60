"""A CSV of captions: the rows of its lines."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from muse_adapter.data.annotations.files import read_text, some_of


def read_caption_table(path: Path) -> list[tuple[int, dict[str, str]]]:
    """Read a CSV of captions.

    Args:
        path: UTF-8, separated by commas; its first line names the columns, among them `video` and
            `caption`. Empty lines are skipped.

    Returns:
        For each line its number and its stripped fields by column.

    Raises:
        FileNotFoundError: There is no such file.
        OSError: It cannot be read.
        ValueError: It is not as described, or has no captions; the message says where.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file of captions: {path}") from None
    except OSError as error:
        raise OSError(f"cannot read the captions {path}: {error.strerror}") from error
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: list[tuple[int, dict[str, str]]] = []
    columns: list[str] = []
    try:
        for fields in reader:
            if not any(field.strip() for field in fields):
                continue
            if not columns:
                columns = _columns_of(path, fields)
            elif len(fields) != len(columns):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(fields)} fields, expected "
                    f"{len(columns)}; a caption that holds a comma must stand in double quotes"
                )
            else:
                stripped = (field.strip() for field in fields)
                rows.append((reader.line_num, dict(zip(columns, stripped, strict=True))))
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num}: {error}") from error
    if not rows:
        raise ValueError(f"{path}: there are no captions")
    return rows


def check_filled(path: Path, rows: list[tuple[int, dict[str, str]]], *columns: str) -> None:
    """Check that no field of some columns is empty.

    Raises:
        ValueError: One is; the message names the lines.
    """
    for column in columns:
        lines = [f"line {line}" for line, row in rows if not row[column]]
        if lines:
            raise ValueError(f"{path}: empty {column} in {some_of(lines)}")


def _columns_of(path: Path, fields: list[str]) -> list[str]:
    columns = [field.strip() for field in fields]
    if len(columns) == 1 and len(other := re.split("[;\t|]", columns[0])) > 1:
        separator = columns[0][len(other[0])]
        raise ValueError(
            f"{path}: the first line is separated by {separator!r}, expected "
            "commas: save it as CSV with commas"
        )
    if not {"video", "caption"} <= set(columns) or len(set(columns)) < len(columns):
        raise ValueError(
            f"{path}: the first line must name the columns video and caption, "
            f"separated by commas and each once, got {','.join(columns)!r}"
        )
    return columns
