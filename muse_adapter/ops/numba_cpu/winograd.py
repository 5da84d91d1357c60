"""3x3 convolutions of maps by Winograd's minimal filtering F(2x2, 3x3).

A tile of 2x2 outputs reads 4x4 inputs d. Instead of 36 products for each pair of channels it takes
the 16 of

    A^T ((G g G^T) * (B^T d B)) A

(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1), which
are 16 matrix products over all tiles and channels. A and B hold only 0, 1 and -1: the kernels below
just add, and rounding stays near that of the direct way, which larger tiles would not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses, last_dim_contiguous, view
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import WIDTH, inline, load, pointer, splat, store

TILES = 300  # of one round: what stands between its steps is 16 numbers of each in each channel
ENOUGH = 1 << 15  # below so many numbers a second thread is not worth its start
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


@inline
def column(source: Any, place: int, step: int, exist: Any, zero: Any) -> Any:
    """Four vectors that stand `step` apart; zero for those that do not exist."""
    return (
        load(source, place) if exist[0] else zero,
        load(source, place + step) if exist[1] else zero,
        load(source, place + 2 * step) if exist[2] else zero,
        load(source, place + 3 * step) if exist[3] else zero,
    )


@inline
def store_row(target: Any, place: int, plane: int, row: Any) -> None:
    """Write four vectors, each into its plane."""
    store(target, place, row[0])
    store(target, place + plane, row[1])
    store(target, place + 2 * plane, row[2])
    store(target, place + 3 * plane, row[3])


@inline
def times_b(d: Any) -> Any:
    """Four vectors by B."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


@inline
def times_a(m: Any) -> Any:
    """Four vectors by A."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


@inline
def times_a_transposed(y0: Any, y1: Any, zero: Any) -> Any:
    """Two vectors by A^T."""
    return y0, y0 + y1, y0 - y1, zero - y1


@inline
def tiling(sizes: Any) -> Any:
    """Rows and columns of tiles in a map, channels, and numbers from one of the 16 to the next."""
    maps, height, width, blocks = sizes
    rows, columns, channels = (height + 1) // 2, (width + 1) // 2, blocks * WIDTH
    return rows, columns, channels, maps * rows * columns * channels


_unpack = unpacker(4, 4, 2)


@Kernel
def spread_inputs(memory: Any) -> None:
    """B^T d B of every tile; d is zero outside of its map.

    Arguments in the memory, of all kernels here:
        sizes: maps, H, W, blocks of channels.
        map_view: address and strides of map, row and column of (maps, H, W, C).
        others: addresses of the tiles (16, maps, tile rows, tile columns, C), and of a bias (C,),
            which `gather_outputs` alone reads.
    """
    unit, counters, threads, sizes, map_view, others = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    maps, height, width, blocks = sizes
    x, v = pointer(map_view[0], unit), pointer(others[0], unit)
    down, right = map_view[2], map_view[3]
    rows, columns, channels, plane = tiling(sizes)
    zero = splat(unit) * 0.0
    while True:
        job = next_number(counters)
        image, i = job // rows, job % rows
        if image >= maps:
            return
        r0, r2, r3 = i > 0, 2 * i + 1 < height, 2 * i + 2 < height
        for j in range(columns):
            c0, c2, c3 = j > 0, 2 * j + 1 < width, 2 * j + 2 < width
            for block in range(blocks):
                to = (job * columns + j) * channels + block * WIDTH
                at = image * map_view[1] + block * WIDTH + (2 * i - 1) * down + (2 * j - 1) * right
                a = times_b(column(x, at, down, (r0 and c0, c0, r2 and c0, r3 and c0), zero))
                at += right
                b = times_b(column(x, at, down, (r0, True, r2, r3), zero))
                at += right
                c = times_b(column(x, at, down, (r0 and c2, c2, r2 and c2, r3 and c2), zero))
                at += right
                d = times_b(column(x, at, down, (r0 and c3, c3, r2 and c3, r3 and c3), zero))
                store_row(v, to, plane, times_b((a[0], b[0], c[0], d[0])))
                store_row(v, to + 4 * plane, plane, times_b((a[1], b[1], c[1], d[1])))
                store_row(v, to + 8 * plane, plane, times_b((a[2], b[2], c[2], d[2])))
                store_row(v, to + 12 * plane, plane, times_b((a[3], b[3], c[3], d[3])))


@Kernel
def gather_outputs(memory: Any) -> None:
    """A^T m A and the bias, of every tile; arguments as in `spread_inputs`."""
    unit, counters, threads, sizes, map_view, others = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    maps, height, width, blocks = sizes
    y, m, shift = pointer(map_view[0], unit), pointer(others[0], unit), pointer(others[1], unit)
    down, right = map_view[2], map_view[3]
    rows, columns, channels, plane = tiling(sizes)
    zero = splat(unit) * 0.0
    all_four = (True, True, True, True)
    while True:
        job = next_number(counters)
        image, i = job // rows, job % rows
        if image >= maps:
            return
        below = 2 * i + 1 < height
        for j in range(columns):
            across = 2 * j + 1 < width
            for block in range(blocks):
                at = (job * columns + j) * channels + block * WIDTH
                to = image * map_view[1] + block * WIDTH + 2 * i * down + 2 * j * right
                a = times_a(column(m, at, 4 * plane, all_four, zero))
                b = times_a(column(m, at + plane, 4 * plane, all_four, zero))
                c = times_a(column(m, at + 2 * plane, 4 * plane, all_four, zero))
                d = times_a(column(m, at + 3 * plane, 4 * plane, all_four, zero))
                upper = times_a((a[0], b[0], c[0], d[0]))
                lower = times_a((a[1], b[1], c[1], d[1]))
                added = load(shift, block * WIDTH)
                store(y, to, upper[0] + added)
                if across:
                    store(y, to + right, upper[1] + added)
                if below:
                    store(y, to + down, lower[0] + added)
                if below and across:
                    store(y, to + down + right, lower[1] + added)


@Kernel
def spread_gradients(memory: Any) -> None:
    """A y A^T of every tile, the way back of `gather_outputs`; arguments as in `spread_inputs`."""
    unit, counters, threads, sizes, map_view, others = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    maps, height, width, blocks = sizes
    y, m = pointer(map_view[0], unit), pointer(others[0], unit)
    down, right = map_view[2], map_view[3]
    rows, columns, channels, plane = tiling(sizes)
    zero = splat(unit) * 0.0
    while True:
        job = next_number(counters)
        image, i = job // rows, job % rows
        if image >= maps:
            return
        below = 2 * i + 1 < height
        for j in range(columns):
            across = 2 * j + 1 < width
            for block in range(blocks):
                to = (job * columns + j) * channels + block * WIDTH
                at = image * map_view[1] + block * WIDTH + 2 * i * down + 2 * j * right
                y00 = load(y, at)
                y01 = load(y, at + right) if across else zero
                y10 = load(y, at + down) if below else zero
                y11 = load(y, at + down + right) if below and across else zero
                a = times_a_transposed(y00, y10, zero)
                b = times_a_transposed(y01, y11, zero)
                store_row(m, to, plane, times_a_transposed(a[0], b[0], zero))
                store_row(m, to + 4 * plane, plane, times_a_transposed(a[1], b[1], zero))
                store_row(m, to + 8 * plane, plane, times_a_transposed(a[2], b[2], zero))
                store_row(m, to + 12 * plane, plane, times_a_transposed(a[3], b[3], zero))


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution with zeros around each map.

    Args:
        x: (maps, H, W, C), float32 or float64 like the others; C and O are multiples of WIDTH.
        weight: (O, C, 3, 3).
        bias: (O,); None: zeros.

    Returns:
        (maps, H, W, O).
    """
    x, outputs = last_dim_contiguous(x), len(weight)
    shift = x.new_zeros(outputs) if bias is None else bias.contiguous()
    filters = _two_sided(x) @ weight.reshape(-1, 9).t()
    filters = filters.view(16, outputs, -1).transpose(1, 2)
    y = x.new_empty(*x.shape[:3], outputs)
    for begin, end in _rounds(x):
        products = torch.bmm(_spread(spread_inputs, x[begin:end]), filters)
        _run(gather_outputs, y[begin:end], products, shift)
    return y


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Gradient (O, C, 3, 3) of the weight from x (maps, H, W, C) and that of y (maps, H, W, O)."""
    x, grad = last_dim_contiguous(x), last_dim_contiguous(grad)
    outputs, inputs = grad.shape[3], x.shape[3]
    filters = x.new_zeros(16, outputs, inputs)
    for begin, end in _rounds(x):
        products = _spread(spread_gradients, grad[begin:end])
        filters.baddbmm_(products.transpose(1, 2), _spread(spread_inputs, x[begin:end]))
    return (filters.view(16, -1).t() @ _two_sided(x)).view(outputs, inputs, 3, 3)


def _two_sided(like: Tensor) -> Tensor:
    """(16, 9), by which the nine numbers of a filter g become the sixteen of G g G^T."""
    return like.new_tensor([[p * q for p in a for q in b] for a in _G for b in _G])


def _rounds(x: Tensor) -> list[tuple[int, int]]:
    """Which maps are convolved at once."""
    maps, height, width, _ = x.shape
    count = max(1, TILES // _tiles(height, width))
    return [(begin, min(begin + count, maps)) for begin in range(0, maps, count)]


def _tiles(height: int, width: int) -> int:
    return -(-height // 2) * -(-width // 2)


def _spread(kernel: Kernel, maps: Tensor) -> Tensor:
    count, height, width, channels = maps.shape
    tiles = maps.new_empty(16, count * _tiles(height, width), channels)
    _run(kernel, maps, tiles)
    return tiles


def _run(kernel: Kernel, maps: Tensor, tiles: Tensor, bias: Tensor | None = None) -> None:
    count, height, width, channels = maps.shape
    threads = torch.get_num_threads() if tiles.numel() >= ENOUGH else 1
    sizes = count, height, width, channels // WIDTH
    kernel.run(maps.dtype, threads, sizes, view(maps)[:4], addresses(tiles, bias))
