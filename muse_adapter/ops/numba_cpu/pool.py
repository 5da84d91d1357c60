"""Threads for kernels that let go of the interpreter's lock: torch's, or else a few of ours.

Numba's own parallel loops do not serve: its OpenMP layer aborts after a fork, its workqueue layer
when two threads call at once.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from muse_adapter.ops.numba_cpu import team

_lock = threading.Lock()
_executor: ThreadPoolExecutor | None = None
_size = 0


def _forget() -> None:
    """In a forked child the threads are gone, and the lock may be held by one of them."""
    global _lock, _executor, _size
    _lock, _executor, _size = threading.Lock(), None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _helpers(count: int) -> ThreadPoolExecutor:
    global _executor, _size
    with _lock:
        if _executor is None or _size < count:
            # The smaller pool finishes what it holds; its idle threads end when it is collected.
            _executor = ThreadPoolExecutor(count, thread_name_prefix="muse-adapter-scan")
            _size = count
        return _executor


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
    errors = team.run(enter, work, threads) if enter else _run_on_pool(work, threads)
    if errors:
        raise errors[0]


def _run_on_pool(work: Callable[[], None], threads: int) -> list[BaseException]:
    helpers = _helpers(threads - 1)
    started = [helpers.submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        waited = [helper for helper in started if not helper.cancel()]
        errors = [helper.exception() for helper in waited]
    return [error for error in errors if error is not None]
