"""The state of a process that a library could change without being asked."""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import gc
import locale
import logging
import os
import random
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_BLOCK = (
    20 << 20
)  # bytes, which glibc takes from the system until it has learnt to keep such blocks
_fork_hooks: list[str] = []
_held: list[torch.Tensor] = []  # blocks that must not be freed: glibc learns from what is freed
_register_at_fork: Callable[..., None] = os.register_at_fork


def _record_fork_hook(**hooks: Callable[[], object]) -> None:
    _fork_hooks.extend(f"{when} {hook.__module__}" for when, hook in hooks.items())
    _register_at_fork(**hooks)


os.register_at_fork = _record_fork_hook


def process_state() -> dict[str, Any]:
    """Read the state of this process, values that compare equal when nothing has changed."""
    return {**_system(), **_python(), **_torch()}


def differences(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Return what differs: its name, and what is new of a collection or else both values."""
    changed = {}
    for name, old in before.items():
        new = after[name]
        if new != old:
            changed[name] = sorted(new - old) if isinstance(new, frozenset) else (old, new)
    return changed


def _system() -> dict[str, Any]:
    status = Path("/proc/self/status").read_text().splitlines()
    return {
        "threads": len(os.listdir("/proc/self/task")),
        "signals": [line for line in status if line.startswith(("SigCgt", "SigIgn", "SigBlk"))],
        "libraries": _libraries(),
        "allocator": _bytes_from_system(),
        "folder": os.getcwd(),
        "affinity": os.sched_getaffinity(0),
        "priority": os.getpriority(os.PRIO_PROCESS, 0),
    }


def _python() -> dict[str, Any]:
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    root = logging.getLogger()
    loggers = [logging.getLogger(name) for name in ("muse_adapter", "torch")]
    return {
        "fork hooks": list(_fork_hooks),
        "python threads": frozenset(thread.name for thread in threading.enumerate()),
        "signal handlers": handlers,
        "environment": dict(os.environ),
        "exit hooks": atexit._ncallbacks(),
        "import system": (list(sys.meta_path), list(sys.path), list(sys.path_hooks)),
        "interpreter": (sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile()),
        "limits": (sys.getrecursionlimit(), sys.getswitchinterval(), gc.get_threshold()),
        "faulthandler": faulthandler.is_enabled(),
        "locale": locale.setlocale(locale.LC_ALL),
        "warnings filters": list(warnings.filters),
        "logging": [(log.level, log.propagate, list(log.handlers)) for log in (root, *loggers)],
        "random numbers": (hash(random.getstate()), hash(bytes(torch.get_rng_state().tolist()))),
    }


def _torch() -> dict[str, Any]:
    backends = torch.backends
    return {
        "torch threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "torch deterministic": (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            torch.utils.deterministic.fill_uninitialized_memory,
        ),
        "torch defaults": (torch.get_default_dtype(), torch.get_default_device()),
        "torch grad": (
            torch.is_grad_enabled(),
            torch.is_inference_mode_enabled(),
            torch.is_anomaly_enabled(),
        ),
        "torch autocast": (torch.is_autocast_enabled("cpu"), torch.is_autocast_enabled("cuda")),
        "torch precision": (
            torch.get_float32_matmul_precision(),
            backends.cuda.matmul.allow_tf32,
            backends.cudnn.allow_tf32,
        ),
        "torch backends": (
            backends.cudnn.enabled,
            backends.cudnn.benchmark,
            backends.cudnn.deterministic,
            backends.mkldnn.enabled,
            backends.quantized.engine,
        ),
        # The smallest denormal number times 1 is 0 where they are flushed.
        "flushed denormals": (torch.tensor([1e-45]) * 1).item() == 0,
    }


def _libraries() -> frozenset[str]:
    """Shared libraries of the process but those of Python's standard library."""
    files = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()}
    own = str(Path(os.__file__).parent)
    return frozenset(name for name in files if ".so" in name and not name.startswith(own))


class _Mallinfo2(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]


def _bytes_from_system() -> int | None:
    """Bytes that the C library takes from the system for one large block; None if unknown."""
    mallinfo2 = getattr(ctypes.CDLL(None), "mallinfo2", None)
    if mallinfo2 is None or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    mallinfo2.restype = _Mallinfo2
    before = mallinfo2().hblkhd
    _held.append(torch.empty(_BLOCK, dtype=torch.uint8))
    return int(mallinfo2().hblkhd - before)
