"""How much of this process's processors other processes use, on Linux."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc")


class Look(NamedTuple):
    """Clocks at one moment, in seconds.

    Attributes:
        wall: Time.
        own: Work of this process.
        processors: Work on each processor that this process may use, by the system's name; empty
            where the system does not say.
    """

    wall: float
    own: float
    processors: dict[str, float]

    def others_since(self, then: Look) -> float:
        """Return how many processors other processes used on average, 0 where it is not known."""
        both = self.processors.keys() & then.processors.keys()  # a processor may come or go
        if not both:
            return 0.0
        used = sum(self.processors[name] - then.processors[name] for name in both)
        return max(0.0, (used - (self.own - then.own)) / (self.wall - then.wall))


def look() -> Look:
    """Look at the clocks."""
    return Look(time.perf_counter(), time.process_time(), _work(_usable_processors()))


def _usable_processors() -> set[str]:
    """Return those of all threads: OpenMP may have bound the calling one to a single processor."""
    numbers: set[int] = set()
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            for thread in (_PROC / "self" / "task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    numbers |= os.sched_getaffinity(int(thread.name))
    return {f"cpu{number}" for number in numbers}


def _work(processors: set[str]) -> dict[str, float]:
    seconds = {}
    try:
        lines = (_PROC / "stat").read_text(encoding="ascii").splitlines()
        for name, *values in filter(None, map(str.split, lines)):
            if name in processors:
                # user, nice, system, idle, waiting for disks, interrupts (2), stolen by the host
                ticks = [int(value) for value in values[:8]]
                seconds[name] = (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return {}
    return seconds
