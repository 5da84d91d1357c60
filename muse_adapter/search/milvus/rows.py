"""Videos as rows of a collection, one for each segment, and back."""

from __future__ import annotations

import base64
import hashlib
import re
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from muse_adapter.search.local.columns import pack_video
from muse_adapter.search.milvus.schema import MAX_CHUNKS, MAX_TEXT
from muse_adapter.search.segments import Segment, VideoSegments

_CHUNK = MAX_TEXT // 4 * 3  # bytes in base64
_BYTE = re.compile(r"[%\udc80-\udcff]")
_ESCAPED = re.compile(r"%([0-9A-F]{2})")

# All that tells where a segment is, without its data.
PLACE_FIELDS = ["addition", "name", "number", "count", "start", "end"]


def video_id(video: str) -> str:
    """Return the id of a video, which is that of the row of its first segment."""
    return hashlib.sha256(video.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def video_of(addition: str) -> str:
    """Return the id of a video by that of an addition."""
    return addition[:32]


def row_ids(addition: str, count: int) -> list[str]:
    """Return the ids of all rows of an addition."""
    return [video_of(addition), *(f"{addition}/{number}" for number in range(1, count))]


def is_first(row: Mapping[str, Any]) -> bool:
    """Return whether a row is that of the first segment of a video, by its id alone."""
    return "/" not in row["id"]


def is_possible(row: Mapping[str, Any], most: int) -> bool:
    """Return whether a first row may be one that was written.

    Args:
        row: With its place.
        most: Segments a video can have.
    """
    names_itself = video_of(row["addition"]) == row["id"]
    return names_itself and row["number"] == 0 and 1 <= row["count"] <= most


def encode_name(video: str) -> str:
    """Write a path as text; paths may hold bytes that are no text."""
    return _BYTE.sub(lambda match: f"%{ord(match[0]) & 0xFF:02X}", video)


def decode_name(name: str) -> str:
    """Undo `encode_name`."""

    def character(match: re.Match[str]) -> str:
        byte = int(match[1], 16)
        return chr(byte if byte < 0x80 else 0xDC00 + byte)

    return _ESCAPED.sub(character, name)


def make_rows(video: VideoSegments, frame_features: bool) -> list[dict[str, Any]]:
    """Return the rows of a video, rounded to half precision as every store does.

    Raises:
        ValueError: A value is not finite in half precision, or there are too many frames.
    """
    packed = pack_video(video)
    content = b"".join([packed.segments, packed.vectors, packed.frames])
    addition = f"{video_id(video.video)}-{hashlib.sha256(content).hexdigest()[:16]}"
    vectors = video.vectors.detach().half().float().tolist()
    now = int(time.time())
    rows: list[dict[str, Any]] = [
        {
            "id": identity,
            "addition": addition,
            "name": encode_name(video.video),
            "number": number,
            "count": len(video.spans),
            "start": start,
            "end": end,
            "written": now,
            "vector": vectors[number],
        }
        for number, (identity, (start, end)) in enumerate(
            zip(row_ids(addition, len(video.spans)), video.spans, strict=True)
        )
    ]
    if frame_features:
        for row, frames in zip(rows, video.frames or [], strict=True):
            row["num_frames"] = len(frames)
            row["frames"] = _encode_frames(video.video, frames)
    return rows


def _encode_frames(video: str, frames: Tensor) -> list[str]:
    content = frames.detach().to("cpu", torch.float16).contiguous().numpy().tobytes()
    starts = range(0, len(content), _CHUNK)
    if len(starts) > MAX_CHUNKS:
        raise ValueError(f"{video!r}: the frame features of a segment are too large for Milvus")
    return [base64.b64encode(content[start : start + _CHUNK]).decode() for start in starts]


def row_frames(row: Mapping[str, Any]) -> Tensor:
    """Return the frame features (T, F) of a row."""
    content = b"".join(base64.b64decode(chunk, validate=True) for chunk in row["frames"])
    count = row["num_frames"]
    if not content:
        return torch.empty(count, 0, dtype=torch.float16)
    return torch.frombuffer(bytearray(content), dtype=torch.float16).view(count, -1)


def row_segment(row: Mapping[str, Any]) -> Segment:
    """Return the segment of a row."""
    return Segment(decode_name(row["name"]), row["start"], row["end"])


def is_whole(rows: list[Mapping[str, Any]], frame_features: bool) -> bool:
    """Return whether the rows of an addition are those that were written.

    Args:
        rows: Rows with all fields, at least one, that of the first segment.
        frame_features: Whether there are frame features.
    """
    rows = sorted(rows, key=lambda row: row["number"])
    try:
        video = VideoSegments(
            decode_name(rows[0]["name"]),
            [(row["start"], row["end"]) for row in rows],
            torch.tensor([row["vector"] for row in rows]),
            [row_frames(row) for row in rows] if frame_features else None,
        )
        again = make_rows(video, frame_features)
    except (ValueError, RuntimeError):
        return False
    keys = "id", "addition", "number", "count"
    return all(
        all(row[key] == expected[key] for key in keys)
        for row, expected in zip(rows, again, strict=True)
    )
