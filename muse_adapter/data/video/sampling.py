"""Positions of the sampled frames of a video: by count, by time, or both."""

from __future__ import annotations

import math
import numbers
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# Seconds by which times in floating point may miss each other.
TOLERANCE_S = 1e-7


@dataclass(frozen=True)
class Sampling:
    """What to sample from a video.

    Args:
        num_frames: T, the largest number of frames.
        start: Seconds after the first frame (None: 0).
        end: Seconds after the first frame, exclusive (None: the end of the video).
        fps: Frames per second to sample from (None: every frame of the video).

    Raises:
        ValueError: A value is out of range.
    """

    num_frames: int
    start: float | None = None
    end: float | None = None
    fps: float | None = None

    def __post_init__(self) -> None:
        check_positive("num_frames", self.num_frames)
        for name in ("start", "end", "fps"):
            value = getattr(self, name)
            if value is not None and not _is_time(value):
                raise ValueError(f"{name} must be None or a finite number >= 0, got {value!r}")
        if self.fps == 0:
            raise ValueError("fps must be above 0, got 0")
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"end must be after start={self.start or 0.0}, got end={self.end}")

    def positions(
        self, times: Sequence[float], duration: float, rounding: float = 0.0
    ) -> list[int]:
        """Compute the positions of the sampled frames.

        Args:
            times: Ascending seconds of all frames, the first 0.
            duration: Seconds from the first frame to the end of the last.
            rounding: Seconds by which a time may be off.

        Returns:
            Ascending positions in `times`, at most `num_frames`. With `fps`, a frame that is shown
            for long is repeated. Empty if the video ends before `start`.
        """
        start, end = self.start or 0.0, duration if self.end is None else min(self.end, duration)
        close = max(TOLERANCE_S, rounding)
        if not times or (self.start is not None and start >= duration - close):
            return []
        if self.fps is not None:
            count = max(1, math.ceil((end - start - close) * self.fps))
            steps = sample_positions(count, self.num_frames)
            return [_shown_at(times, start + step / self.fps, close) for step in steps]
        first = _shown_at(times, start, close)
        stop = len(times) if self.end is None else bisect_left(times, self.end - close)
        return [first + i for i in sample_positions(max(1, stop - first), self.num_frames)]


def sample_positions(num_available: int, num_frames: int) -> list[int]:
    """Compute the positions of a uniform sample of n frames.

    They are `i * (n - 1) / (T - 1)`, rounded, halves towards the middle: the first and the last
    frame are included, and a reversed video gives the reversed sample (except for the middle one of
    an odd number of positions where n is even).

    Args:
        num_available: n, the number of frames of the video; if n <= T, all are taken.
        num_frames: T, the number of frames to sample.

    Returns:
        Ascending positions, `min(n, T)` of them.
    """
    if num_available <= num_frames:
        return list(range(num_available))
    if num_frames == 1:
        return [(num_available - 1) // 2]
    last, steps = num_available - 1, num_frames - 1
    # In integers: the nearest positions of the first half, ties to the right, then its mirror.
    first_half = [(2 * i * last + steps) // (2 * steps) for i in range((num_frames + 1) // 2)]
    return first_half + [last - p for p in reversed(first_half[: num_frames // 2])]


def check_positive(name: str, value: int) -> None:
    """Raise ValueError unless a value is an integer of at least 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _is_time(value: object) -> bool:
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(float(value)) and float(value) >= 0
    except OverflowError:  # an integer beyond floating point
        return False


def _shown_at(times: Sequence[float], time: float, close: float) -> int:
    """Return the position of the last frame that begins at or before a time."""
    return max(0, bisect_right(times, time + close) - 1)
