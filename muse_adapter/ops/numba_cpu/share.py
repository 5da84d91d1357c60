"""Threads for kernels that let go of the interpreter's lock: torch's, or else a few of ours.

Numba's own parallel loops do not serve: its OpenMP layer aborts after a fork, its workqueue layer
when two threads call at once.
"""

from __future__ import annotations

from collections.abc import Callable

from muse_adapter.ops.numba_cpu import pool, team


def share(work: Callable[[], None], threads: int) -> None:
    """Call `work` here and at the same time on other threads, and wait until all have returned.

    Args:
        work: does jobs until none is left. The calls divide the jobs as they go, so that a thread
            that starts late, because the machine is busy, finds less to do or nothing.
        threads: at most so many calls, at least 1.
    """
    if threads == 1:
        work()
        return
    enter = team.region()
    errors = team.run(enter, work, threads) if enter else pool.run(work, threads)
    if errors:
        raise errors[0]
