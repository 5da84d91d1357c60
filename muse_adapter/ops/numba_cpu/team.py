"""Torch's own OpenMP threads, where they can be had: on Linux.

For some milliseconds after an operation of torch its threads look out for the next one, without
sleeping. A thread of ours would get half of such a core; work that is given to them gets all of it.

From the import of this module on, a fork ends the threads of OpenMP in the parent too, which starts
others when it next needs them: a child could not, and would wait for its parent's for ever.
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
_ended = False  # whether the threads had ended at the last fork


def _forked() -> bool:
    """Whether this process was forked and has not loaded a program since."""
    stat = Path("/proc/self/stat")
    if not stat.exists():
        return False
    flags = int(stat.read_text().rpartition(")")[2].split()[6])
    return bool(flags & 0x40)  # PF_FORKNOEXEC


# Whether this is a child that OpenMP would let wait for its parent's threads. Of a fork before the
# import nothing is known.
_lost = _forked()


def region() -> Callable[..., Any] | None:
    """OpenMP's entry to a parallel region, of the library that torch itself uses; or None."""
    return None if _lost else _entry()


@functools.cache
def _entry() -> Any:
    enter = _from_torchs_openmp("GOMP_parallel")
    if enter is not None:
        enter.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        enter.restype = None
    return enter


def _from_torchs_openmp(name: str) -> Any:
    """A function of the OpenMP that torch uses; None if that is unknown or has none of the name.

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
    """Let the threads end, as the child will have none of them; the next region starts new ones."""
    global _ended
    pause = _from_torchs_openmp("omp_pause_resource_all")
    _ended = pause is not None and pause(_SOFT) == 0


def _in_child() -> None:
    global _lost
    _lost = _lost or not _ended


if sys.platform == "linux":
    os.register_at_fork(before=_before_fork, after_in_child=_in_child)


def run(enter: Callable[..., Any], function: int, memory: int, threads: int) -> None:
    """Call a C function on this thread and on others of torch's, as `share` says.

    Args:
        enter: what `region` gave.
    """
    # OpenMP ends threads that a region leaves out, and starts them anew in the next.
    enter(function, memory, max(threads, torch.get_num_threads()), 0)
