"""As many threads of torch as other processes leave processors.

Torch gives each thread an equal share of an operation, and all of them wait for the slowest. Beside
a busy process a training step of the head took 1.5 times as long with two threads as with one, on
two processors (`benchmarks/shared_machine.py`, docs/head.md).
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

_PROC = Path("/proc")
MIN_S = 0.5  # shortest time over which the system's ticks, of 10 ms, say enough


class _Look(NamedTuple):
    """Seconds: by the clock, of work on each processor, and of this process."""

    wall: float
    processors: dict[str, float]
    own: float


class FreeThreads:
    """Keeps torch's number of threads at what other processes leave free, on Linux.

    Call `adjust` between the steps of a training, or between batches, in the thread that computes.
    The `numba` backend takes as many threads as torch. On another number of threads sums are
    rounded in another order: two runs may differ in their last digits.

    Processes that this one started count as others. Quotas of containers are not known here.

    Args:
        most: Threads where nothing else runs (None: torch's present number).

    Attributes:
        sees_others: Whether the load is known. It is not on other systems, and not where fewer
            processors than `most` are seen that this process may use, as where OpenMP binds its
            threads. The number of threads stays as it is there.

    Raises:
        ValueError: `most` is less than 1.
    """

    def __init__(self, most: int | None = None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.most = torch.get_num_threads() if most is None else most
        self._processors = _processors()
        self._then = _look(self._processors)
        self.sees_others = self._then is not None and len(self._processors) >= self.most

    def adjust(self) -> int:
        """Set torch's number of threads for what comes next.

        It follows the load since the last look, at first since this object was made. A call within
        half a second of it changes nothing.

        Returns:
            The number of threads.
        """
        now = _look(self._processors)
        then = self._then
        if not self.sees_others or now is None or then is None or now.wall - then.wall < MIN_S:
            return torch.get_num_threads()
        self._then = now
        both = now.processors.keys() & then.processors.keys()  # a processor may come or go
        used = sum(now.processors[name] - then.processors[name] for name in both)
        threads = self._threads_beside((used - (now.own - then.own)) / (now.wall - then.wall))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return threads

    def _threads_beside(self, others: float) -> int:
        """Return the threads to have beside others that used so many processors.

        Where they used a part o of one, T threads that wait for the slowest take 1 / (1 - o) times
        as long, and T - 1 threads T / (T - 1) times: the part is left to them from o = 1 / T on.
        """
        given_up = math.ceil(max(0.0, others - 1 / self.most))
        return max(1, min(self.most, len(self._processors) - given_up))


def _processors() -> set[str]:
    """Return the processors that this process may use, as the system names them.

    Those of all its threads: OpenMP may have bound the calling one to a single processor.
    """
    numbers: set[int] = set()
    if hasattr(os, "sched_getaffinity"):
        with contextlib.suppress(OSError):
            for thread in (_PROC / "self" / "task").iterdir():
                with contextlib.suppress(ProcessLookupError):  # it has ended
                    numbers |= os.sched_getaffinity(int(thread.name))
    return {f"cpu{number}" for number in numbers}


def _look(processors: set[str]) -> _Look | None:
    """Look at the clocks; None where the system does not say what its processors do."""
    try:
        lines = (_PROC / "stat").read_text(encoding="ascii").splitlines()
        seconds = {}
        for name, *values in filter(None, map(str.split, lines)):
            if name in processors:
                # user, nice, system, idle, waiting for disks, interrupts (2), stolen by the host
                ticks = [int(value) for value in values[:8]]
                seconds[name] = (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return None
    return _Look(time.perf_counter(), seconds, time.process_time()) if seconds else None
