"""Torch's own OpenMP threads, where they can be had: on Linux, and not in a forked child.

For some milliseconds after an operation of torch its threads look out for the next one, without
sleeping. A thread of ours would get half of such a core; work that is given to them gets all of it.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


_forked = False


def _forget() -> None:
    """A forked child has none of the threads, and OpenMP would wait for them for ever."""
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def region() -> Callable[..., Any] | None:
    """OpenMP's entry to a parallel region, of the library that torch itself uses; or None."""
    return None if _forked else _entry()


@functools.cache
def _entry() -> Callable[..., Any] | None:
    if sys.platform != "linux":
        return None
    library = Path(torch.__file__).with_name("lib") / "libtorch_cpu.so"
    try:
        enter = ctypes.CDLL(str(library)).GOMP_parallel  # also looked for in what torch loads
    except (OSError, AttributeError):
        return None
    enter.argtypes = [_Body, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    enter.restype = None
    return enter


def run(enter: Callable[..., Any], work: Callable[[], None], threads: int) -> list[BaseException]:
    """Call `work` on this thread and on others of torch's, and wait until all have returned.

    Args:
        enter: what `region` gave.
        threads: at most so many calls.

    Returns:
        What the calls have raised: nothing can be raised through OpenMP.
    """
    places = itertools.count()
    errors: list[BaseException] = []

    def body(_: int | None) -> None:
        try:
            # OpenMP ends threads that a region leaves out, and starts them anew in the next.
            if next(places) < threads:
                work()
        except BaseException as error:
            errors.append(error)

    enter(_Body(body), None, max(threads, torch.get_num_threads()), 0)
    return errors
