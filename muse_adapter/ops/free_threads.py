"""As many threads of torch as other processes leave processors.

Torch gives each thread an equal share of an operation, and all of them wait for the slowest. Beside
a busy process a training step of the head took 1.5 times as long with two threads as with one, on
two processors (`benchmarks/shared_machine.py`, docs/head.md).
"""

from __future__ import annotations

import math
import time

import torch

from muse_adapter.ops.load import look

MIN_S = 0.5  # shortest time over which the system's ticks, of 10 ms, say enough


class FreeThreads:
    """Keeps torch's number of threads at what other processes leave free, on Linux.

    Call `adjust` between the steps of a training, or between batches, in the thread that computes.
    The `numba` backend takes as many threads as torch. On another number of threads sums are
    rounded in another order: two runs may differ in their last digits.

    Processes that this one started count as others. Quotas of containers are not known here.

    Args:
        most: Threads where nothing else runs (None: torch's present number).

    Raises:
        ValueError: `most` is less than 1.
    """

    def __init__(self, most: int | None = None) -> None:
        if most is not None and most < 1:
            raise ValueError(f"most must be at least 1, got {most}")
        self.most = torch.get_num_threads() if most is None else most
        self._then = look()

    @property
    def sees_others(self) -> bool:
        """Whether the load is known; where it is not, the number of threads stays as it is.

        It is not on other systems, and not where fewer processors than `most` are seen that this
        process may use, as where OpenMP binds its threads.
        """
        return len(self._then.processors) >= self.most

    def adjust(self) -> int:
        """Set torch's number of threads for what comes next.

        It follows the load since the last look, at first since this object was made. A call within
        half a second of it changes nothing.

        Returns:
            The number of threads.
        """
        then = self._then
        # First, since a look takes longer, and a step may be short.
        if time.perf_counter() - then.wall >= MIN_S:
            self._then = look()
            if self.sees_others:
                torch.set_num_threads(self._threads_beside(self._then.others_since(then)))
        return torch.get_num_threads()

    def _threads_beside(self, others: float) -> int:
        """Return the threads to have beside others that used so many processors.

        Where they used a part o of one, T threads that wait for the slowest take 1 / (1 - o) times
        as long, and T - 1 threads T / (T - 1) times: the part is left to them from o = 1 / T on.
        """
        given_up = math.ceil(max(0.0, others - 1 / self.most))
        return max(1, min(self.most, len(self._then.processors) - given_up))
