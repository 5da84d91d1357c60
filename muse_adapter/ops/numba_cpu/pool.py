"""A few threads of ours, which sleep while there is no work, and are made anew after a fork."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

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


class _Call:
    """One call of the work on a helper: called off, or waited for, and never late."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.running = self.called_off = False

    def __call__(self) -> None:
        with self.lock:
            if self.called_off:
                return
            self.running = True
        try:
            self.work()
        finally:
            self.ended.set()

    def end(self) -> None:
        with self.lock:
            self.called_off = not self.running
        if self.running:
            self.ended.wait()


def run(work: Callable[[], None], threads: int) -> None:
    """Call `work`, which raises nothing, on this thread and on others, and wait for all of them.

    A helper that would start late, because the machine or the pool is busy, is called off. What the
    work reads and writes may be gone as soon as this returns or raises.
    """
    calls = [_Call(work) for _ in range(threads - 1)]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads to be had: fewer do it
            for call in calls:
                _helpers(len(calls)).submit(call)
        work()
    finally:
        interrupt = None
        for call in calls:
            while True:
                try:
                    call.end()
                    break
                except KeyboardInterrupt as error:
                    interrupt = error
        if interrupt is not None:
            raise interrupt
