"""A few threads of ours, which sleep while there is no work, and are made anew after a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait

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


def run(work: Callable[[], None], threads: int) -> None:
    """Call `work`, which raises nothing, on this thread and on others, and wait for all of them.

    A helper that would start late, because the machine or the pool is busy, is called off.
    """
    started = [_helpers(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        wait([helper for helper in started if not helper.cancel()])
