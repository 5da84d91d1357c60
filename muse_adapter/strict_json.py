"""JSON from files that may be damaged: every oddity is one `ValueError`."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MAX_SIZE = 1 << 20  # bytes of a file, of which ours have a few hundred
MAX_DIGITS = 18  # of an integer, so that it fits into 64 bits


def read_text(path: Path) -> str:
    """Read a file of JSON text, in UTF-8.

    Raises:
        OSError: It cannot be read.
        ValueError: It is too large, or not UTF-8.
    """
    with path.open("rb") as file:
        content = file.read(MAX_SIZE + 1)
    if len(content) > MAX_SIZE:
        raise ValueError(f"the file is larger than {MAX_SIZE} bytes")
    return content.decode("utf-8")


def parse_json(text: str) -> Any:
    """Parse JSON text.

    Args:
        text: The text.

    Returns:
        Its value.

    Raises:
        ValueError: It is not JSON, is nested too deeply, repeats a name in an object, or has a
            number that is not finite or an integer of more than 18 digits.
    """
    try:
        return json.loads(
            text,
            object_pairs_hook=_unique_names,
            parse_int=_integer,
            parse_float=_finite,
            parse_constant=_finite,
        )
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"names are repeated: {repeated}")
    return values


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits: {digits[:MAX_DIGITS]}...")
    return int(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"a number is not finite: {digits[:MAX_DIGITS]}")
    return number
