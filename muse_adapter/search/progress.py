"""Progress of adding videos, on the terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

_INTERVAL = 0.2  # seconds between two lines on a terminal
_LOG_INTERVAL = 30.0  # where lines cannot be overwritten, as in files


class Progress:
    """Print how many videos are done, how fast, and the time that is left.

    Args:
        total: Number of videos.
        enabled: Whether to print anything.
        stream: Where to; None: standard error.
    """

    def __init__(self, total: int, *, enabled: bool = True, stream: TextIO | None = None) -> None:
        self._total = total
        self._stream = sys.stderr if stream is None else stream
        # A process without a terminal may have no standard error.
        self._enabled = enabled and self._stream is not None
        self._overwrites = self._enabled and self._stream.isatty()
        self._started = self._printed = time.monotonic()

    def update(self, done: int, unreadable: int) -> None:
        """Print the state, unless a line was printed just before."""
        now = time.monotonic()
        pause = _INTERVAL if self._overwrites else _LOG_INTERVAL
        if self._enabled and now - self._printed >= pause:
            self._printed = now
            self._print(done, unreadable, now - self._started)

    def close(self, done: int, unreadable: int) -> None:
        """Print the last state."""
        if self._enabled and self._total:
            self._print(done, unreadable, time.monotonic() - self._started)
            if self._overwrites:
                print(file=self._stream, flush=True)

    def _print(self, done: int, unreadable: int, seconds: float) -> None:
        rate = done / max(seconds, 1e-9)
        parts = [f"{done} of {self._total} videos, {rate:.1f} a second"]
        if 0 < done < self._total:
            parts.append(f"{_duration((self._total - done) / rate)} left")
        if unreadable:
            parts.append(f"{unreadable} unreadable")
        line = ", ".join(parts)
        if self._overwrites:
            print(f"\r\x1b[K{line}", end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}"
