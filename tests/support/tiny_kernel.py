"""A kernel that compiles at once, to test how kernels are kept on disk."""

from __future__ import annotations

from typing import Any

import torch

from muse_adapter.ops.numba_cpu.kernel import Kernel, unpacker
from muse_adapter.ops.numba_cpu.simd import pointer

_unpack = unpacker(1)


def raise_by_one(memory: Any) -> None:
    unit, _, _, address = _unpack(memory)
    numbers = pointer(address, unit)
    numbers[0] += 1


_NAME = raise_by_one.__qualname__


def tiny_kernel() -> Kernel:
    """Make the kernel as a new process would: nothing of it is in memory."""
    raise_by_one.__qualname__ = _NAME
    return Kernel(raise_by_one)


def works() -> bool:
    """Run it once."""
    number = torch.full((), 41.0)
    tiny_kernel().run(torch.float32, 1, number.data_ptr())
    return number.item() == 42
