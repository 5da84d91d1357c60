"""Caption files: one sentence a line, behind an id that names its video."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple


class Caption(NamedTuple):
    """A sentence that describes a moment of a video.

    Attributes:
        id: As in the caption file, `video#enc#n`.
        video: The part of the id before the first `#`.
        text: The sentence.
    """

    id: str
    video: str
    text: str


def read_captions(path: str | os.PathLike[str]) -> list[Caption]:
    """Read a caption file, with lines `video#enc#n sentence`; empty lines are skipped.

    Args:
        path: The file, such as `tvrtrain.caption.txt`.

    Returns:
        The captions in the order of the file.

    Raises:
        FileNotFoundError: The file does not exist.
        ValueError: It is not UTF-8, has no caption, or a line is not of that form.
    """
    name = str(path)
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name!r} is not UTF-8 text: {error}") from error
    captions = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        identifier, _, text = line.strip().partition(" ")
        video, mark, _ = identifier.partition("#")
        if not (video and mark and text.strip()):
            raise ValueError(
                f"{name!r}, line {number}: expected 'video#enc#n sentence', got {line[:80]!r}"
            )
        captions.append(Caption(identifier, video, text.strip()))
    if not captions:
        raise ValueError(f"{name!r} has no caption")
    return captions
