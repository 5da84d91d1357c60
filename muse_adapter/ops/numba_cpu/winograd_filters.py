"""The filters of `winograd`: G g G^T of every pair of channels, and the gradient of g.

Torch would multiply by a matrix of 9 x 16 numbers, which meets each number on its own: @@
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses, view
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import (
    WIDTH,
    inline,
    load,
    load_every,
    pointer,
    store,
    store_every,
)

MIN_ELEMENTS = 1 << 15  # below that a second thread is not worth its start


@inline
def times_g(g: Any) -> Any:
    """Return three vectors times G^T."""
    even, odd = (g[0] + g[2]) * 0.5, g[1] * 0.5
    return g[0], even + odd, even - odd, g[2]


@inline
def times_g_transposed(m: Any) -> Any:
    """Return four vectors times G."""
    even = (m[1] + m[2]) * 0.5
    return m[0] + even, (m[1] - m[2]) * 0.5, even + m[3]


@inline
def load_filters(weight: Any, at: int, row: int, strides: Any) -> Any:
    """Load a row of the 3x3 numbers, each of WIDTH filters."""
    _, apart, down, right = strides
    at += row * down
    return (
        load_every(weight, at, apart),
        load_every(weight, at + right, apart),
        load_every(weight, at + 2 * right, apart),
    )


@inline
def load_row(tiles: Any, at: int, plane: int) -> Any:
    """Load a row of the 4x4 numbers."""
    return (
        load(tiles, at),
        load(tiles, at + plane),
        load(tiles, at + 2 * plane),
        load(tiles, at + 3 * plane),
    )


_unpack = unpacker(2, 5, 1)


@Kernel
def transform(memory: Any) -> None:
    """Run the jobs that are left: the filters of one output channel each.

    Arguments in the memory:
        sizes: O, blocks of C.
        weight_view: address and strides of (O, C, 3, 3).
        planes: address of (16, O, C), to be written.
    """
    unit, counters, threads, sizes, weight_view, planes = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    outputs, blocks = sizes
    weight, filters, strides = pointer(weight_view[0], unit), pointer(planes, unit), weight_view[1:]
    channels = blocks * WIDTH
    plane = outputs * channels  # from one of the 16 numbers to the next
    while True:
        output = next_number(counters)
        if output >= outputs:
            return
        for channel in range(0, channels, WIDTH):
            at, to = output * strides[0] + channel * strides[1], output * channels + channel
            a = times_g(load_filters(weight, at, 0, strides))
            b = times_g(load_filters(weight, at, 1, strides))
            c = times_g(load_filters(weight, at, 2, strides))
            for column in range(4):
                g = times_g((a[column], b[column], c[column]))
                for row in range(4):
                    store(filters, to + (4 * row + column) * plane, g[row])


@Kernel
def transform_back(memory: Any) -> None:
    """Run the jobs that are left: G^T m G of one output channel each, the gradient of `transform`.

    Arguments in the memory:
        sizes, weight_view, planes: As in `transform`, where now the weight is written.
    """
    unit, counters, threads, sizes, weight_view, planes = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    outputs, blocks = sizes
    weight, filters, strides = pointer(weight_view[0], unit), pointer(planes, unit), weight_view[1:]
    channels = blocks * WIDTH
    plane = outputs * channels
    while True:
        output = next_number(counters)
        if output >= outputs:
            return
        for channel in range(0, channels, WIDTH):
            at, to = output * strides[0] + channel * strides[1], output * channels + channel
            a = times_g_transposed(load_row(filters, to, plane))
            b = times_g_transposed(load_row(filters, to + 4 * plane, plane))
            c = times_g_transposed(load_row(filters, to + 8 * plane, plane))
            d = times_g_transposed(load_row(filters, to + 12 * plane, plane))
            for column in range(3):
                g = times_g_transposed((a[column], b[column], c[column], d[column]))
                for row in range(3):
                    place = at + row * strides[2] + column * strides[3]
                    store_every(weight, place, strides[1], g[row])


def filters_of(weight: Tensor) -> Tensor:
    """Return G g G^T of every filter: (O, C, 3, 3) -> (16, O, C); C is a multiple of WIDTH."""
    filters = weight.new_empty(16, *weight.shape[:2])
    _run(transform, weight, filters)
    return filters


def filter_gradient(grad: Tensor) -> Tensor:
    """Return G^T m G, the gradient of `filters_of`: (16, O, C), contiguous, -> (O, C, 3, 3)."""
    weight = grad.new_empty(*grad.shape[1:], 3, 3)
    _run(transform_back, weight, grad)
    return weight


def _run(kernel: Kernel, weight: Tensor, filters: Tensor) -> None:
    _, outputs, channels = filters.shape
    threads = torch.get_num_threads() if filters.numel() >= MIN_ELEMENTS else 1
    kernel.run(
        *(weight.dtype, threads, (outputs, channels // WIDTH)), view(weight), *addresses(filters)
    )
