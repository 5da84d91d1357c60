"""What an index holds, and what it answers: segments of videos, hits, reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


@dataclass(frozen=True)
class Hit:
    """A video that was found, by its best segment.

    Attributes:
        video: Path of the video, as it was added.
        start: Start of the segment, in seconds after the first frame.
        end: End of the segment.
        score: Cosine of query and segment, or the score of the second stage.
    """

    video: str
    start: float
    end: float
    score: float


@dataclass(frozen=True)
class AddReport:
    """What `VideoIndex.add` did with each of the given paths.

    Attributes:
        added: Videos that are new in the index.
        skipped: Videos that were in the index, or were given twice.
        unreadable: The reason for each video that could not be read.
    """

    added: tuple[str, ...]
    skipped: tuple[str, ...]
    unreadable: Mapping[str, str]


class Segment(NamedTuple):
    """A part of a video.

    Attributes:
        video: Path of the video.
        start: Seconds after the first frame.
        end: Seconds after the first frame.
    """

    video: str
    start: float
    end: float


@dataclass(frozen=True)
class VideoSegments:
    """All segments of a video, as a store takes them.

    Attributes:
        video: Path of the video.
        spans: Start and end of G segments, in seconds.
        vectors: (G, D), which scores are inner products with.
        frames: Frame features of each segment, (T, F) with its own T; None without them.
    """

    video: str
    spans: list[tuple[float, float]]
    vectors: Tensor
    frames: list[Tensor] | None = None


@dataclass(frozen=True)
class Settings:
    """Properties of an index that are fixed when it is created.

    Attributes:
        dim: D, width of the vectors.
        window: Seconds of a segment; None: a video is one segment.
        stride: Seconds from the start of a window to that of the next; None without windows.
        frame_features: Whether frame features are stored.

    Raises:
        ValueError: A value is out of range.
    """

    dim: int
    window: float | None = None
    stride: float | None = None
    frame_features: bool = False

    def __post_init__(self) -> None:
        if type(self.dim) is not int or self.dim < 1:
            raise ValueError(f"dim must be an int of at least 1, got {self.dim!r}")
        if type(self.frame_features) is not bool:
            raise ValueError(f"frame_features must be a bool, got {self.frame_features!r}")
        if self.window is None:
            if self.stride is not None:
                raise ValueError(f"stride={self.stride!r} needs window=")
            return
        for name, value in (("window", self.window), ("stride", self.stride)):
            if type(value) not in (int, float) or not 0 < float(value or 0) < float("inf"):
                raise ValueError(f"{name} must be a positive number of seconds, got {value!r}")
        if self.stride is not None and self.stride > self.window:
            raise ValueError(
                f"stride must be at most window={self.window}, or parts of a video are in no "
                f"segment, got {self.stride}"
            )
