"""Frame features in a folder of `feature.bin`, `id.txt`, `shape.txt` and `video2frames.txt`."""

from __future__ import annotations

import ast
import mmap
import os
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# What each file holds, for messages.
BINARY_FILES = {
    "feature.bin": "the features of all frames, float32, row by row",
    "id.txt": "the name of each row's frame",
    "shape.txt": "the numbers of rows and columns",
    "video2frames.txt": "a dict of the frames' names of each video",
}

_STRING = r"""(?:'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")"""
# Between two names there is a comma: were it optional, spaces could be matched in many ways, and a
# damaged file would be tried in all of them.
_LIST = rf"\[\s*(?:{_STRING}\s*(?:,\s*{_STRING}\s*)*,?\s*)?\]"
_VIDEO = re.compile(rf"\s*({_STRING}\s*:\s*{_LIST})\s*")


class BinaryFeatures(Mapping[str, Tensor]):
    """Frame features of videos as MS-SL, GMMFormer and their descendants keep them.

    `features[video]` reads the rows (T, C) of a video from the memory-mapped file, in the order of
    `video2frames.txt`. When the folder is opened, the sizes and names of its files are compared.

    Args:
        folder: With the files `feature.bin`, `id.txt`, `shape.txt` and `video2frames.txt`.

    Attributes:
        width: C.

    Raises:
        FileNotFoundError: Files are missing; the message names all of them.
        ValueError: A file is damaged, or does not fit the others.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        missing = [name for name in BINARY_FILES if not (self.folder / name).is_file()]
        if missing:
            raise FileNotFoundError(
                f"{str(self.folder)!r} lacks "
                + ", ".join(f"{name} ({BINARY_FILES[name]})" for name in missing)
            )
        self.num_rows, self.width = _read_shape(self.folder / "shape.txt")
        path = self.folder / "feature.bin"
        expected, size = 4 * self.num_rows * self.width, path.stat().st_size
        if size != expected:
            raise ValueError(
                f"{str(path)!r} has {size} bytes, but shape.txt says {self.num_rows} rows of "
                f"{self.width} float32 numbers, which are {expected}"
            )
        names = _read_text(self.folder / "id.txt").split()
        if len(names) != self.num_rows:
            raise ValueError(
                f"{str(self.folder / 'id.txt')!r} has {len(names)} names, but shape.txt says "
                f"{self.num_rows} rows"
            )
        row_of = {name: row for row, name in enumerate(names)}
        # One tensor for all: where workers are not forked, every tensor costs an open file.
        rows: list[int] = []
        self._rows_of: dict[str, slice] = {}
        path = self.folder / "video2frames.txt"
        for video, frames in _read_frames(path):
            unknown = [frame for frame in frames if frame not in row_of]
            if unknown or not frames:
                problem = f"the frame {unknown[0]!r}, which id.txt lacks" if unknown else "no frame"
                raise ValueError(f"{str(path)!r}: video {video!r} has {problem}")
            self._rows_of[video] = slice(len(rows), len(rows) + len(frames))
            rows += [row_of[frame] for frame in frames]
        self._rows = torch.tensor(rows, dtype=torch.long)
        self._table: Tensor | None = None

    def __getitem__(self, video: str) -> Tensor:
        rows = self._rows[self._rows_of[video]]
        if self._table is None:
            self._table = self._map()
        return self._table.index_select(0, rows)  # a copy: the mapped file is read-only

    def __contains__(self, video: object) -> bool:
        return video in self._rows_of

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows_of)

    def __len__(self) -> int:
        return len(self._rows_of)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_table": None}  # every process maps the file itself

    def _map(self) -> Tensor:
        with (self.folder / "feature.bin").open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="The given buffer is not writable")
            table = torch.frombuffer(mapped, dtype=torch.float32)
        return table.view(self.num_rows, self.width)


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{str(path)!r} is not UTF-8 text: {error}") from error


def _read_shape(path: Path) -> tuple[int, int]:
    line = _read_text(path).partition("\n")[0]
    match = re.fullmatch(r"\s*(\d{1,15})\s+(\d{1,15})\s*", line)
    if match is None or "0" in match.groups():
        raise ValueError(f"{str(path)!r} must begin with 'rows columns', got {line[:40]!r}")
    return int(match[1]), int(match[2])


def _read_frames(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Read a Python dict of lists of strings, video by video.

    As a whole its syntax tree would take a kilobyte for each of millions of names.
    """
    text = _read_text(path).strip()
    position = 1
    while match := _VIDEO.match(text, position):
        try:
            ((video, frames),) = ast.literal_eval(f"{{{match[1]}}}").items()
        except (SyntaxError, ValueError):  # of an escape that is cut off, or a zero byte
            break
        yield video, frames
        position = match.end()
        if text[position : position + 1] != ",":
            break
        position += 1
    end = text[position:].strip()
    if text[:1] != "{" or end != "}":
        raise ValueError(
            f"{str(path)!r} must be a dict of lists of strings, {{'video': ['frame', ...], ...}}; "
            f"character {position} begins with {text[position : position + 40]!r}"
        )
