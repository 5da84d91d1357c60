"""Kernels of the numba backend, compiled by the workers of pytest-xdist together.

Each worker needs nearly all of them, soon after its start: where nothing is cached yet, each would
compile all of them, for half a minute.
"""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any

import torch

from muse_adapter.ops import numba_cpu


def compile_with_other_workers(claims: Path) -> None:
    """Have the first kernel that a worker compiles make it compile its part of all kernels.

    Args:
        claims: Folder of all workers; in it a worker claims a kernel by an empty file.
    """
    from muse_adapter.ops.numba_cpu.kernel import Kernel

    compile_one = Kernel._compile

    def compile_part(self: Kernel, dtype: torch.dtype) -> Any:
        if not self.function.__module__.startswith(numba_cpu.__name__):  # a test's own
            return compile_one(self, dtype)
        Kernel._compile = compile_one
        for module in pkgutil.iter_modules(numba_cpu.__path__, f"{numba_cpu.__name__}."):
            for name, kernel in vars(importlib.import_module(module.name)).items():
                if isinstance(kernel, Kernel):
                    for each in (torch.float32, torch.float64):
                        if _claim(claims / f"{module.name}.{name}.{each}"):
                            kernel._address(each)
        # Where another worker has compiled it, it is taken from the disk.
        return self._compiled.get(dtype) or compile_one(self, dtype)

    Kernel._compile = compile_part


def _claim(file: Path) -> bool:
    try:
        file.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
