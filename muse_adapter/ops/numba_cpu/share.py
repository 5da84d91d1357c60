"""Threads for kernels: torch's, or else a few of ours.

Numba's own parallel loops do not serve: its OpenMP layer aborts after a fork, its workqueue layer
when two threads call at once.
"""

from __future__ import annotations

import ctypes
import functools

from muse_adapter.ops.numba_cpu import pool, team

_Function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def share(function: int, memory: int, threads: int) -> None:
    """Call a C function here and at the same time on other threads, and wait for all of them.

    Args:
        function: its address. It does jobs until none is left: the calls divide them as they go, so
            that a thread that starts late, because the machine is busy, finds less to do or
            nothing. Calls beyond `threads` may come, and must do nothing.
        memory: an address, its argument.
        threads: how many calls are wanted, at least 1.
    """
    enter = team.region() if threads > 1 else None
    if enter is not None:
        team.run(enter, function, memory, threads)
    else:
        pool.run(functools.partial(_Function(function), memory), threads)
