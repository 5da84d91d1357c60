"""The files of a local table: packing videos into bytes, appending them, mapping them."""

from __future__ import annotations

import mmap
import os
import struct
import warnings
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.search.local.manifest import column_path
from muse_adapter.search.segments import VideoSegments

# Ends in names, segments and frames; checksums of what is small or searched, and of the frames.
VIDEO_ROW = struct.Struct("<qqqqq")
SEGMENT_ROW = struct.Struct("<ddq")  # start, end, number of frames
REMOVED_ROW = struct.Struct("<q")
HALF = 2  # bytes of a number in float16


class PackedVideo(NamedTuple):
    """A video as bytes, with its checksums; it does not depend on its place in the files."""

    name: bytes | memoryview
    segments: bytes | memoryview
    vectors: bytes | memoryview
    frames: bytes | memoryview
    num_frames: int
    crc: int
    frames_crc: int

    def is_whole(self) -> bool:
        """Return whether the bytes of all but the frames have their checksum."""
        return self.crc == packed_crc(self.name, self.segments, self.vectors)

    def frames_are_whole(self) -> bool:
        """Return whether the bytes of the frames have their checksum."""
        return self.frames_crc == zlib.crc32(self.frames)


def packed_crc(*parts: bytes | memoryview) -> int:
    """Return the checksum of the lengths and the bytes of several parts."""
    crc = zlib.crc32(struct.pack(f"<{len(parts)}q", *map(len, parts)))
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def pack_video(video: VideoSegments) -> PackedVideo:
    """Round a video to half precision and pack it.

    Raises:
        ValueError: A value is not finite in half precision.
    """
    rows = [] if video.frames is None else video.frames
    lengths = [len(frames) for frames in rows] or [0] * len(video.spans)
    spans = zip(video.spans, lengths, strict=True)
    segments = b"".join(SEGMENT_ROW.pack(*span, length) for span, length in spans)
    name = encode_name(video.video)
    vectors = _half_bytes(video.video, "vectors", video.vectors)
    frames = _half_bytes(video.video, "frame features", torch.cat(rows)) if rows else b""
    crc = packed_crc(name, segments, vectors)
    return PackedVideo(name, segments, vectors, frames, sum(lengths), crc, zlib.crc32(frames))


def encode_name(video: str) -> bytes:
    """Encode the path of a video; paths may hold bytes that are no text."""
    return video.encode("utf-8", "surrogateescape")


def decode_name(name: bytes | memoryview) -> str:
    """Decode the path of a video, whatever its bytes are."""
    return bytes(name).decode("utf-8", "surrogateescape")


def _half_bytes(video: str, what: str, values: Tensor) -> bytes:
    half = values.detach().to("cpu", torch.float16)
    if not half.isfinite().all():
        raise ValueError(f"{video!r}: {what} are not finite in half precision")
    return half.numpy().tobytes()


class Appender:
    """Append to the files of a generation, behind the bytes that are valid.

    Args:
        folder: Of the table.
        generation: Number in the names of the files.
        sizes: Valid bytes of each file. What a killed writer left behind them is overwritten.
        ends: Number of segments and of frames in the files.
    """

    def __init__(
        self, folder: Path, generation: int, sizes: Mapping[str, int], ends: tuple[int, int]
    ) -> None:
        self._folder = folder
        self._generation = generation
        self.sizes = dict(sizes)
        self.ends = ends
        self._written: set[str] = set()

    def append(self, videos: Iterable[PackedVideo]) -> None:
        """Write videos, without waiting for the disk."""
        parts: dict[str, list[bytes | memoryview]] = {
            name: [] for name in ("names", "videos", "segments", "vectors", "frames")
        }
        name_end = self.sizes["names"]
        segment_end, frame_end = self.ends
        for video in videos:
            name_end += len(video.name)
            segment_end += len(video.segments) // SEGMENT_ROW.size
            frame_end += video.num_frames
            row = VIDEO_ROW.pack(name_end, segment_end, frame_end, video.crc, video.frames_crc)
            parts["names"].append(video.name)
            parts["videos"].append(row)
            parts["segments"].append(video.segments)
            parts["vectors"].append(video.vectors)
            parts["frames"].append(video.frames)
        for name, pieces in parts.items():
            self._write(name, b"".join(pieces))
        self.ends = segment_end, frame_end

    def append_removed(self, numbers: Sequence[int]) -> bytes:
        """Write the numbers of removed videos, and return what was written."""
        content = b"".join(REMOVED_ROW.pack(number) for number in numbers)
        self._write("removed", content)
        return content

    def sync(self) -> None:
        """Wait until all that was written is on the disk."""
        for name in sorted(self._written):
            file = os.open(self._path(name), os.O_RDWR | os.O_CLOEXEC)
            try:
                os.fsync(file)
            finally:
                os.close(file)
        self._written.clear()

    def _write(self, name: str, content: bytes) -> None:
        if not content:
            return
        file = os.open(self._path(name), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            rest, offset = memoryview(content), self.sizes[name]
            while rest:
                count = os.pwrite(file, rest, offset)
                rest, offset = rest[count:], offset + count
        finally:
            os.close(file)
        self.sizes[name] = offset
        self._written.add(name)

    def _path(self, name: str) -> Path:
        return column_path(self._folder, name, self._generation)


def map_file(path: Path, size: int) -> memoryview:
    """Map the first bytes of a file, read-only. The memory is free once nothing refers to it.

    Raises:
        FileNotFoundError: There is no file.
        ValueError: It is shorter.
    """
    if not size:
        return memoryview(b"")
    with path.open("rb") as file:
        length = os.fstat(file.fileno()).st_size
        if length < size:
            raise ValueError(f"{str(path)!r} is damaged: it has {length} bytes of {size}")
        return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))


def map_tensor(memory: memoryview, dtype: torch.dtype, width: int) -> Tensor:
    """Return a tensor (rows, width) on mapped memory, which is only read."""
    if not len(memory):
        return torch.empty(0, width, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(memory, dtype=dtype).view(-1, width)
