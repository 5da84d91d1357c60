"""Launches of kernels without Triton's own work on every call.

Triton looks at each of some fifty arguments to find the kernel that it has compiled for such ones.
Here the first launch of a kind keeps what Triton compiled, and the next ones run that directly, as
Triton's tutorial of the fused softmax does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from triton.runtime import JITFunction

# Of each kind of launch: what was compiled, the values of its constants, the kernel, kept alive.
_compiled: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...], Any]] = {}


def cdiv(a: int, b: int) -> int:
    """Divide and round up; `triton.cdiv` takes as long as a small tensor operation."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """Return the smallest power of 2 that is no less than n >= 1."""
    return 1 << (n - 1).bit_length()


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    options: dict[str, Any],
    tensors: Sequence[Tensor],
    sizes: Sequence[int],
    strides: Sequence[int] = (),
    **constants: Any,
) -> None:
    """Launch a kernel on the current device, whose parameters stand in the order of the arguments.

    Args:
        kernel: The kernel.
        grid: Programs along each axis.
        options: Of the compiler, the same on every launch of the kernel.
        tensors: Contiguous or not: the kernel has their addresses.
        sizes: Integers that no kernel is compiled anew for, below 2**31.
        strides: Integers of which it matters whether they are 1 or multiples of 16.
        constants: By name, in one order on all launches from one place.
    """
    # The interpreter; and ROCm, where Triton also compiles anew for tensors above 2 GiB.
    if torch.version.hip or not isinstance(kernel, JITFunction):
        kernel[grid](*tensors, *sizes, *strides, **constants, **options)
        return
    addresses = [tensor.data_ptr() for tensor in tensors]
    key = (
        id(kernel),  # its own hash is that of its source, and slow
        tensors[0].device.index,
        *[tensor.dtype for tensor in tensors],
        *[address % 16 == 0 for address in addresses],
        *strides,
        *constants.values(),
    )
    known = _compiled.get(key)
    if known is None:
        compiled = kernel[grid](*tensors, *sizes, *strides, **constants, **options)
        # A compiled kernel takes constants in their places, and a grid of three axes.
        names = kernel.arg_names[len(tensors) + len(sizes) + len(strides) :]
        if compiled is not None:
            _compiled[key] = compiled, tuple(constants[name] for name in names), kernel
        return
    compiled, values, _ = known
    compiled[(*grid, 1, 1)[:3]](*addresses, *sizes, *strides, *values)
