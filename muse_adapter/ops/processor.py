"""What kind of processor this is, where that decides which of two ways is the faster one."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

from muse_adapter.ops.torch_private import constant_when_compiled

_CPUINFO = Path("/proc/cpuinfo")


@constant_when_compiled
def onednn_is_faster() -> bool:
    """Whether oneDNN computes float32 faster than MKL: on AMD's Zen 4 or newer, with AVX-512.

    Torch multiplies by MKL, which stays with AVX2 on AMD's processors, and convolves by oneDNN,
    which does not. Not so under OMP_DYNAMIC=TRUE, where oneDNN may compute wrong numbers.
    """
    dynamic = os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true"
    return _vectors() == "AVX512" and "AuthenticAMD" in _maker() and not dynamic


@functools.cache
def _vectors() -> str:
    return torch.backends.cpu.get_cpu_capability()


@functools.cache
def _maker() -> str:
    """Return what the processor says of its maker, perhaps among other words."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:  # not Linux
        return platform.processor()
    return next((line for line in lines if line.startswith("vendor_id")), "")
