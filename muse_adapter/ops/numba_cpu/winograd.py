"""3x3 convolutions of maps by Winograd's minimal filtering F(2x2, 3x3).

A tile of 2x2 outputs reads 4x4 inputs d. Instead of 36 products for each pair of channels it takes
the 16 of

    A^T ((G g G^T) * (B^T d B)) A

(Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, section 4.1), which
are 16 matrix products over all tiles and channels. A and B hold only 0, 1 and -1: the kernels below
just add, and rounding stays near that of the direct way, which larger tiles would not.

With torch's convolutions instead, inference over 3,060 tokens takes 1.17 times as long with 1
thread and 1.04 times with 2, and a training step 1.15 and 1.19 times (`python -m
benchmarks.ablation`, 2 cores of an AMD EPYC with AVX2, torch 2.13.0, 2026-11-28). On an AMD EPYC
with AVX-512 torch is the faster one: with Winograd inference takes 1.16 and 1.18 times as long, and
a training step 1.12 and 1.05 times (2026-11-29). Torch's convolutions use AVX-512 there, and its
matrix products, of MKL, do not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses, last_dim_contiguous, view
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import WIDTH, advance, inline, load, pointer, splat, store

TILES = 300  # of one round: what stands between its steps is 16 numbers of each in each channel
MIN_ELEMENTS = 1 << 15  # below that a second thread is not worth its start
_G = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))


@inline
def times_b(d: Any) -> Any:
    """Return four vectors times B."""
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


@inline
def times_a(m: Any) -> Any:
    """Return four vectors times A."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


@inline
def times_a_transposed(y0: Any, y1: Any, zero: Any) -> Any:
    """Return two vectors times A^T."""
    return y0, y0 + y1, y0 - y1, zero - y1


@inline
def load_four(source: Any, at: int, step: int, inside: Any, column: bool, zero: Any) -> Any:
    """Load a column of four vectors, `step` apart; zero where it or a row of it is not inside."""
    return (
        load(source, at) if column and inside[0] else zero,
        load(source, at + step) if column and inside[1] else zero,
        load(source, at + 2 * step) if column and inside[2] else zero,
        load(source, at + 3 * step) if column and inside[3] else zero,
    )


@inline
def load_planes(tiles: Any, at: int, plane: int, zero: Any) -> Any:
    """Load one column of a tile's 4x4 products."""
    return load_four(tiles, at, 4 * plane, (True, True, True, True), True, zero)


@inline
def store_planes(tiles: Any, at: int, plane: int, row: Any) -> None:
    """Write one row of a tile's 4x4 numbers, each into its plane."""
    store(tiles, at, row[0])
    store(tiles, at + plane, row[1])
    store(tiles, at + 2 * plane, row[2])
    store(tiles, at + 3 * plane, row[3])


@inline
def transform_input(maps: Any, inside: Any, tile: Any, bias: Any, zero: Any) -> None:
    """Write B^T d B, where d is the 4x4 inputs around a tile, and zero outside of the map."""
    x, at, down, right = maps
    rows, columns = inside
    tiles, to, plane = tile
    at -= down + right
    a = times_b(load_four(x, at, down, rows, columns[0], zero))
    b = times_b(load_four(x, at + right, down, rows, columns[1], zero))
    c = times_b(load_four(x, at + 2 * right, down, rows, columns[2], zero))
    d = times_b(load_four(x, at + 3 * right, down, rows, columns[3], zero))
    store_planes(tiles, to, plane, times_b((a[0], b[0], c[0], d[0])))
    store_planes(tiles, to + 4 * plane, plane, times_b((a[1], b[1], c[1], d[1])))
    store_planes(tiles, to + 8 * plane, plane, times_b((a[2], b[2], c[2], d[2])))
    store_planes(tiles, to + 12 * plane, plane, times_b((a[3], b[3], c[3], d[3])))


@inline
def transform_output(maps: Any, inside: Any, tile: Any, bias: Any, zero: Any) -> None:
    """Write A^T m A plus the bias, where m is the tile's 4x4 products."""
    y, at, down, right = maps
    rows, columns = inside
    tiles, to, plane = tile
    a = times_a(load_planes(tiles, to, plane, zero))
    b = times_a(load_planes(tiles, to + plane, plane, zero))
    c = times_a(load_planes(tiles, to + 2 * plane, plane, zero))
    d = times_a(load_planes(tiles, to + 3 * plane, plane, zero))
    upper = times_a((a[0], b[0], c[0], d[0]))
    lower = times_a((a[1], b[1], c[1], d[1]))
    shift = load(bias, 0)
    store(y, at, upper[0] + shift)
    if columns[2]:
        store(y, at + right, upper[1] + shift)
    if rows[2]:
        store(y, at + down, lower[0] + shift)
    if rows[2] and columns[2]:
        store(y, at + down + right, lower[1] + shift)


@inline
def transform_gradient(maps: Any, inside: Any, tile: Any, bias: Any, zero: Any) -> None:
    """Write A y A^T of the tile's 2x2 gradients, the derivative of `transform_output`."""
    y, at, down, right = maps
    rows, columns = inside
    tiles, to, plane = tile
    y00 = load(y, at)
    y01 = load(y, at + right) if columns[2] else zero
    y10 = load(y, at + down) if rows[2] else zero
    y11 = load(y, at + down + right) if rows[2] and columns[2] else zero
    a = times_a_transposed(y00, y10, zero)
    b = times_a_transposed(y01, y11, zero)
    store_planes(tiles, to, plane, times_a_transposed(a[0], b[0], zero))
    store_planes(tiles, to + 4 * plane, plane, times_a_transposed(a[1], b[1], zero))
    store_planes(tiles, to + 8 * plane, plane, times_a_transposed(a[2], b[2], zero))
    store_planes(tiles, to + 12 * plane, plane, times_a_transposed(a[3], b[3], zero))


_unpack = unpacker(4, 4, 2)


@inline
def each_tile(memory: Any, transform: Any) -> None:
    """Call `transform` for every tile and block of channels; a job is one row of tiles.

    It gets the map with the address of the tile's first output and the strides, which of the four
    rows and of the four columns around the tile exist, the tile's numbers with the distance of the
    16 planes, the bias, and a vector of zeros.

    Arguments in the memory:
        sizes: maps, H, W, blocks of channels.
        map_view: address and strides of map, row and column of (maps, H, W, C).
        others: addresses of the tiles (16, maps, tile rows, tile columns, C) and of a bias (C,).
    """
    unit, counters, threads, sizes, map_view, others = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    maps, height, width, blocks = sizes
    source, tiles = pointer(map_view[0], unit), pointer(others[0], unit)
    bias, zero = pointer(others[1], unit), splat(unit) * 0.0
    down, right = map_view[2], map_view[3]
    tile_rows, tile_columns, channels = (height + 1) // 2, (width + 1) // 2, blocks * WIDTH
    plane = maps * tile_rows * tile_columns * channels  # from one of the 16 numbers to the next
    while True:
        job = next_number(counters)
        image, i = job // tile_rows, job % tile_rows
        if image >= maps:
            return
        # Which of the four rows and columns around a tile exist.
        rows = i > 0, True, 2 * i + 1 < height, 2 * i + 2 < height
        for j in range(tile_columns):
            columns = j > 0, True, 2 * j + 1 < width, 2 * j + 2 < width
            for channel in range(0, channels, WIDTH):
                at = image * map_view[1] + 2 * i * down + 2 * j * right + channel
                to = (job * tile_columns + j) * channels + channel
                transform(
                    (source, at, down, right),
                    (rows, columns),
                    (tiles, to, plane),
                    advance(bias, channel),
                    zero,
                )


@Kernel
def input_transform(memory: Any) -> None:
    """Transform the inputs of every tile; arguments as in `each_tile`."""
    each_tile(memory, transform_input)


@Kernel
def output_transform(memory: Any) -> None:
    """Bring the products of every tile back to the map; arguments as in `each_tile`."""
    each_tile(memory, transform_output)


@Kernel
def gradient_transform(memory: Any) -> None:
    """Transform the gradients of every tile; arguments as in `each_tile`."""
    each_tile(memory, transform_gradient)


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve maps with zeros around each.

    Args:
        x: (maps, H, W, C), float32 or float64 like the others; C and O are multiples of WIDTH.
        weight: (O, C, 3, 3).
        bias: (O,); None: zeros.

    Returns:
        (maps, H, W, O).
    """
    x, outputs = last_dim_contiguous(x), len(weight)
    shift = x.new_zeros(outputs) if bias is None else bias.contiguous()
    filters = _filter_transform(x) @ weight.reshape(-1, 9).t()
    filters = filters.view(16, outputs, -1).transpose(1, 2)
    y = x.new_empty(*x.shape[:3], outputs)
    for begin, end in _rounds(x):
        products = torch.bmm(_transformed(input_transform, x[begin:end]), filters)
        _run(output_transform, y[begin:end], products, shift)
    return y


def weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient (O, C, 3, 3) of the weight.

    Args:
        x: (maps, H, W, C).
        grad: gradient of the output, (maps, H, W, O).
    """
    x, grad = last_dim_contiguous(x), last_dim_contiguous(grad)
    outputs, inputs = grad.shape[3], x.shape[3]
    filters = x.new_zeros(16, outputs, inputs)
    for begin, end in _rounds(x):
        products = _transformed(gradient_transform, grad[begin:end])
        filters.baddbmm_(products.transpose(1, 2), _transformed(input_transform, x[begin:end]))
    return (filters.view(16, -1).t() @ _filter_transform(x)).view(outputs, inputs, 3, 3)


def _filter_transform(like: Tensor) -> Tensor:
    """Return the matrix (16, 9) that turns the 9 numbers of a filter g into the 16 of G g G^T."""
    return like.new_tensor([[p * q for p in a for q in b] for a in _G for b in _G])


def _rounds(x: Tensor) -> list[tuple[int, int]]:
    """Return which maps are convolved at once."""
    maps, height, width, _ = x.shape
    count = max(1, TILES // _tiles(height, width))
    return [(begin, min(begin + count, maps)) for begin in range(0, maps, count)]


def _tiles(height: int, width: int) -> int:
    return -(-height // 2) * -(-width // 2)


def _transformed(kernel: Kernel, maps: Tensor) -> Tensor:
    count, height, width, channels = maps.shape
    tiles = maps.new_empty(16, count * _tiles(height, width), channels)
    _run(kernel, maps, tiles)
    return tiles


def _run(kernel: Kernel, maps: Tensor, tiles: Tensor, bias: Tensor | None = None) -> None:
    count, height, width, channels = maps.shape
    threads = torch.get_num_threads() if tiles.numel() >= MIN_ELEMENTS else 1
    sizes = count, height, width, channels // WIDTH
    kernel.run(maps.dtype, threads, sizes, view(maps)[:4], addresses(tiles, bias))
