"""As many threads of torch as other processes leave processors.

Torch gives each thread an equal share of an operation, and all of them wait for the slowest. Beside
a busy process a training step of the head took 1.5 times as long with two threads as with one, on
two cores (`benchmarks/shared_machine.py`, docs/head.md).
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path

import torch

_STAT = Path("/proc/stat")
MIN_S = 0.25  # shortest time over which the system's ticks, of 10 ms, say enough
# Processors that others may use without a thread being given up.
TOLERATED = 0.25


class FreeThreads:
    """Keeps torch's number of threads at what other processes leave free, on Linux.

    Call `adjust` between the steps of a training, or between batches. The `numba` backend takes as
    many threads as torch. Sums are rounded in another order on another number of threads: results
    of two runs may then differ in their last digits.

    Elsewhere than on Linux the number stays as it is.

    Args:
        most: Threads where nothing else runs (None: torch's present number).

    Raises:
        ValueError: `most` is less than 1.
    """

    def __init__(self, most: int | None = None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.most = torch.get_num_threads() if most is None else most
        self._then = _clocks()

    def adjust(self) -> int:
        """Set torch's number of threads for what comes next.

        It follows the load since the last change or look, if a quarter of a second has gone by.
        Other processes are also those that this one started.

        Returns:
            The number of threads.
        """
        now = _clocks()
        if now is None or self._then is None:
            return torch.get_num_threads()
        wall, machine, own = (after - before for after, before in zip(now, self._then, strict=True))
        if wall < MIN_S:
            return torch.get_num_threads()
        self._then = now
        others = max(0.0, (machine - own) / wall)
        # Who shares a processor with a thread of ours gets less than it could use: the part that
        # is seen counts as a whole one.
        free = len(os.sched_getaffinity(0)) - math.ceil(max(0.0, others - TOLERATED))
        threads = max(1, min(self.most, free))
        if threads != torch.get_num_threads():
            torch.set_num_threads(threads)
        return threads


def _clocks() -> tuple[float, float, float] | None:
    """Return seconds by the clock, of the processors this process may use, and of this process.

    None where the system does not say.
    """
    try:
        lines = _STAT.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    ticks = 0
    for name, *values in map(str.split, lines):
        if name in ours:
            # user, nice, system, idle, waiting for disks, interrupts (2), stolen by the host
            used = [int(value) for value in values[:8]]
            ticks += sum(used) - sum(used[3:5])
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK"), time.process_time()
