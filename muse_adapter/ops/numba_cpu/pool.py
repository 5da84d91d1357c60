"""A pool of threads for kernels, which sleep while there is no work."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


class _Pool:
    """The threads of one process, as many as a call has asked for so far."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.executor: ThreadPoolExecutor | None = None
        self.size = 0

    def at_least(self, count: int) -> ThreadPoolExecutor:
        with self.lock:
            if self.executor is None or self.size < count:
                # The smaller executor finishes what it holds; its idle threads end when it is
                # collected.
                self.executor = ThreadPoolExecutor(count, thread_name_prefix="muse-adapter")
                self.size = count
            return self.executor


# By process: a forked child has none of its parent's threads, and the lock may be held by one.
_pools: dict[int, _Pool] = {}


class _Call:
    """A call of the work by a thread of the pool: cancelled, or waited for, and never late."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.work = work
        self.lock, self.ended = threading.Lock(), threading.Event()
        self.running = self.cancelled = False

    def __call__(self) -> None:
        with self.lock:
            if self.cancelled:
                return
            self.running = True
        try:
            self.work()
        finally:
            self.ended.set()

    def end(self) -> None:
        with self.lock:
            self.cancelled = not self.running
        if self.running:
            self.ended.wait()


def run(work: Callable[[], None], threads: int) -> None:
    """Call `work` on this thread and on others of the pool, and wait for all of them.

    A thread that would start late, because the machine or the pool is busy, is not waited for: its
    call is cancelled. What the work reads and writes may be freed as soon as this returns or
    raises.

    Args:
        work: Must not raise.
        threads: How many calls are wanted, at least 1.
    """
    calls = [_Call(work) for _ in range(threads - 1)]
    try:
        with contextlib.suppress(RuntimeError):  # no more threads can be started: fewer do it
            for call in calls:
                _pools.setdefault(os.getpid(), _Pool()).at_least(len(calls)).submit(call)
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
