"""What kind of processor this is, where that decides which of two ways is the faster one."""

from __future__ import annotations

import functools
import os
import platform
from pathlib import Path

import torch

from muse_adapter.ops.torch_private import constant_when_compiled

_CPUINFO = Path("/proc/cpuinfo")


def onednn_multiplies_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than MKL, which torch takes: on AMD's processors.

    Not so under OMP_DYNAMIC=TRUE, where oneDNN may compute wrong numbers.
    """
    return _is_amd() and _vectors() in ("AVX2", "AVX512") and not _dynamic()


@constant_when_compiled
def onednn_convolves_faster() -> bool:
    """Whether torch's 3x3 convolutions, of oneDNN, are faster than ours, whose products are MKL's.

    They are on AMD's Zen 4 or newer: oneDNN has AVX-512 there, and MKL stays with AVX2. As to
    OMP_DYNAMIC, see above.
    """
    return _is_amd() and _vectors() == "AVX512" and not _dynamic()


def _dynamic() -> bool:
    return os.environ.get("OMP_DYNAMIC", "").strip().lower() == "true"


def _is_amd() -> bool:
    return "AuthenticAMD" in _maker()


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
