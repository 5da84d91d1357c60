"""Products of half-precision tokens, and of their weighted sums, with vectors.

Each token is read from memory once. Torch converts tokens to float32 in memory first and reads them
twice more.
"""

from __future__ import annotations

import functools
import math
import platform
from typing import Any

import llvmlite.binding as llvm
import torch
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import WIDTH, Lanes, load, pointer, splat
from muse_adapter.ops.rows import Rows, row_addresses

MIN_NUMBERS = 2**20  # below that a second thread is not worth its start
_BYTES = 2  # of a half


@functools.cache
def has_half_precision() -> bool:
    """Whether the machine code may convert half precision: on any x86 since 2013, unless told not.

    Elsewhere LLVM would call a function that is not there.
    """
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return machine in ("aarch64", "arm64")
    if config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES, or empty by NUMBA_CPU_NAME=generic
        return "+f16c" in config.CPU_FEATURES.split(",")
    return bool(config.ENABLE_AVX and llvm.get_host_cpu_features().get("f16c"))


@intrinsic
def load_half(context: Any, address: Any, like: Any) -> Any:
    """Load WIDTH halves from `address` on (an integer), as numbers of the type of `like`."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        halves = ir.VectorType(ir.HalfType(), WIDTH)
        place = builder.inttoptr(arguments[0], halves.as_pointer())
        wide = ir.VectorType(context.get_value_type(like), WIDTH)
        return builder.fpext(builder.load(place, align=_BYTES, typ=halves), wide)

    return Lanes(like)(types.int64, like), lowered


@intrinsic
def lane_sum(context: Any, value: Any) -> Any:
    """Sum a vector over its lanes, halves added to halves."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (vector,), count = arguments, WIDTH
        while count > 1:
            count //= 2
            low, high = (
                ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(at, at + count)))
                for at in (0, count)
            )
            vector = builder.fadd(
                *(builder.shuffle_vector(vector, vector, lanes) for lanes in (low, high))
            )
        return builder.extract_element(vector, ir.IntType(32)(0))

    return value.dtype(value), lowered


_unpack, _unpack_pooled = unpacker(3, 4), unpacker(4, 6)


@Kernel
def token_products(memory: Any) -> None:
    """Multiply the tokens of every row with a vector; a job is one row.

    Arguments in the memory:
        sizes: rows, tokens of a row, D.
        places: addresses of the rows' addresses (K,), of the vector (D,), and of the products and
            norms (K, N).
    """
    unit, counters, threads, sizes, places = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    rows, tokens, width = sizes
    starts, vector = pointer(places[0], 1), pointer(places[1], unit)
    products, norms = pointer(places[2], unit), pointer(places[3], unit)
    while True:
        job = next_number(counters)
        if job >= rows:
            return
        at = starts[job]
        for token in range(job * tokens, (job + 1) * tokens):
            product, square = splat(unit) * 0.0, splat(unit) * 0.0
            for d in range(0, width, WIDTH):
                x = load_half(at, unit)
                product = product + x * load(vector, d)
                square = square + x * x
                at += WIDTH * _BYTES
            products[token] = lane_sum(product)
            norms[token] = math.sqrt(lane_sum(square))


@Kernel
def pooled_products(memory: Any) -> None:
    """Multiply weighted sums of the tokens of every row with queries; a job is one row.

    Arguments in the memory:
        sizes: rows, tokens of a row N, D, sums of a row W.
        places: addresses of the rows' addresses (K,), of the weights (K, W, N), which are divided
            by the norms, of the queries (W, D), and of the norms (K, N), the products (K, W) and
            the squares (K, W).
    """
    unit, counters, threads, sizes, places = _unpack_pooled(memory)
    if next_number(counters + 8) >= threads:
        return
    rows, tokens, width, sums = sizes
    starts = pointer(places[0], 1)
    weights, queries = pointer(places[1], unit), pointer(places[2], unit)
    norms, products, squares = (
        pointer(places[3], unit),
        pointer(places[4], unit),
        pointer(places[5], unit),
    )
    while True:
        job = next_number(counters)
        if job >= rows:
            return
        at = starts[job]
        for token in range(tokens):
            square = splat(unit) * 0.0
            for _ in range(0, width, WIDTH):
                x = load_half(at, unit)
                square = square + x * x
                at += WIDTH * _BYTES
            norm = math.sqrt(lane_sum(square))
            norms[job * tokens + token] = norm
            for place in range(job * sums * tokens + token, (job + 1) * sums * tokens, tokens):
                if weights[place] != 0.0:
                    weights[place] = weights[place] / norm
        for number in range(job * sums, (job + 1) * sums):
            product, square = splat(unit) * 0.0, splat(unit) * 0.0
            for d in range(0, width, WIDTH):
                at, total = starts[job] + d * _BYTES, splat(unit) * 0.0
                for token in range(number * tokens, (number + 1) * tokens):
                    total = total + weights[token] * load_half(at, unit)
                    at += width * _BYTES
                product = product + total * load(queries, (number - job * sums) * width + d)
                square = square + total * total
            products[number] = lane_sum(product)
            squares[number] = lane_sum(square)


def multiply_tokens(rows: Rows, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply tokens with a vector; see `muse_adapter.ops.token_products`.

    Args:
        rows: (K, ..., D) or K tensors (..., D), contiguous, float16; D is a multiple of WIDTH.
        vector: (D,) float32.

    Returns:
        Products and norms (K, N) float32.
    """
    count, numbers = len(rows), rows[0].numel()
    vector, starts = vector.contiguous(), row_addresses(rows)
    products, norms = vector.new_empty(2, count, numbers // len(vector)).unbind(0)
    token_products.run(
        torch.float32,
        _threads(count * numbers),
        (count, products.shape[1], len(vector)),
        addresses(starts, vector, products, norms),
    )
    return products, norms


def multiply_sums(rows: Rows, weights: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Multiply weighted sums of tokens; see `muse_adapter.ops.pooled_products`.

    Args:
        rows: As in `multiply_tokens`.
        weights: (K, W, N) float32.
        queries: (W, D) float32.

    Returns:
        Norms (K, N), products and squares (K, W) float32.
    """
    count, sums, tokens = weights.shape
    queries, starts = queries.contiguous(), row_addresses(rows)
    factors = weights.clone(memory_format=torch.contiguous_format)
    norms = weights.new_empty(count, tokens)
    products, squares = weights.new_empty(2, count, sums).unbind(0)
    pooled_products.run(
        torch.float32,
        _threads(count * tokens * queries.shape[1]),
        (count, tokens, queries.shape[1], sums),
        addresses(starts, factors, queries, norms, products, squares),
    )
    return norms, products, squares


def _threads(numbers: int) -> int:
    return torch.get_num_threads() if numbers >= MIN_NUMBERS else 1
