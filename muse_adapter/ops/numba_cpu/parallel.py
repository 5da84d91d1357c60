"""Kernels on several threads: torch's, or else a pool's.

Numba's own parallel loops do not serve: its OpenMP layer aborts after a fork, its workqueue layer
when two threads call at once.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence

from muse_adapter.ops.numba_cpu import pool, team
from muse_adapter.ops.numba_cpu.schedule import Schedule, Task, current

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def run_parallel(function: int, memory: int, threads: int) -> None:
    """Call a C function here and at the same time on other threads, and wait for all of them.

    Args:
        function: Its address. It does jobs until none is left: the calls divide them as they go, so
            that a thread that starts late, because the machine is busy, finds less to do or
            nothing. Calls beyond `threads` may come, and must do nothing.
        memory: An address, its argument.
        threads: How many calls are wanted, at least 1.
    """
    call = functools.partial(_Function(function), memory)
    schedule = current()
    if schedule is not None and threads > 1:
        schedule.run_kernel(call)
        return
    enter = team.parallel_region() if threads > 1 else None
    if enter is not None:
        team.run(enter, function, memory, threads)
    else:
        pool.run(call, threads)


def run_tasks(tasks: Sequence[Task], threads: int) -> None:
    """Run tasks on this thread and on others, and wait for all of them.

    Args:
        tasks: In an order in which one thread could do them.
        threads: How many threads are wanted, at least 1.
    """
    enter = team.parallel_region() if threads > 1 else None
    if enter is None:  # torch's operations and the kernels divide themselves
        for task in tasks:
            task.run()
        return
    schedule = Schedule(tasks)
    work = _Function(lambda _: schedule.work())
    team.run(enter, ctypes.cast(work, ctypes.c_void_p).value or 0, 0, threads)
    schedule.raise_error()
