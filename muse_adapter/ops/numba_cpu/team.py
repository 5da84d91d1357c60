"""Torch's own OpenMP threads, where they can be had: on Linux.

For some milliseconds after an operation of torch its threads spin, waiting for the next one. A
thread of the pool would get half of such a core; work that is given to them gets all of it. With
the pool alone, inference over 3,060 tokens with 2 threads takes 1.16 times as long on a quiet
machine and 1.39 times beside a busy process (`python -m benchmarks.ablation`, 2 cores of an AMD
EPYC, torch 2.13.0, 2026-11-28).

From the first use on, a fork ends the threads of OpenMP in the parent too, which starts others when
it next needs them: a forked child would deadlock on the parent's OpenMP threads.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_SOFT = 1  # omp_pause_soft: give up all threads, keep the settings
_FORKED = 0x40  # PF_FORKNOEXEC
_ended = False  # whether the threads had ended at the last fork
_lost = False  # whether this is a child that would deadlock on its parent's threads


def parallel_region() -> Callable[..., Any] | None:
    """Return OpenMP's entry to a parallel region, of the library that torch uses; or None."""
    enter = _entry()
    return None if _lost else enter


@functools.cache
def _entry() -> Any:
    """Find the entry, and watch forks from now on."""
    global _lost
    enter = _from_torchs_openmp("GOMP_parallel")
    if enter is not None:
        enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        enter.restype = None
    if sys.platform == "linux":
        _lost = _forked()  # nobody watched that fork
        os.register_at_fork(before=_before_fork, after_in_child=_in_child)
    return enter


def _forked() -> bool:
    """Whether this process was forked and has not loaded a program since."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return False
    return bool(int(stat.read_text().rpartition(")")[2].split()[6]) & _FORKED)


def _from_torchs_openmp(name: str) -> Any:
    """Find a function of the OpenMP that torch uses; None if that is unknown or has none.

    Torch meets what was loaded for the whole process first, by LD_PRELOAD for example, then what it
    has loaded itself.
    """
    for library in (None, str(Path(torch.__file__).with_name("lib") / "libtorch_cpu.so")):
        try:
            return getattr(ctypes.CDLL(library), name)
        except (OSError, AttributeError):
            continue
    return None


def _before_fork() -> None:
    """End the threads, as the child will have none of them; the next region starts new ones."""
    global _ended
    pause = _from_torchs_openmp("omp_pause_resource_all")
    _ended = pause is not None and pause(_SOFT) == 0


def _in_child() -> None:
    global _lost
    _lost = _lost or not _ended


def run(enter: Callable[..., Any], function: int, memory: int, threads: int) -> None:
    """Call a C function on this thread and on torch's others, as `run_parallel` says.

    Args:
        enter: The result of `parallel_region`.
        function: Its address.
        memory: An address, its argument.
        threads: How many calls are wanted.
    """
    # OpenMP ends threads that a region leaves out, and starts them anew in the next.
    enter(function, memory, max(threads, torch.get_num_threads()), 0)
