"""Products of half-precision tokens, and of weighted sums of them, in one pass over the tokens.

Torch converts tokens to float32 in memory first and reads them twice more.
"""

from __future__ import annotations

import functools
import math
import platform
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import WIDTH, Lanes, advance, load, pointer, splat, store
from muse_adapter.ops.rows import Rows

MIN_NUMBERS = 2**20  # below that a second thread is not worth its start
_BYTES = 2  # of a half


@functools.cache
def has_half_precision() -> bool:
    """Whether the processor converts half precision: any since 2013."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return bool(llvm.get_host_cpu_features().get("f16c"))
    return platform.machine().lower() in ("aarch64", "arm64")


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


_unpack = unpacker(4, 7)


@Kernel
def token_products(memory: Any) -> None:
    """Multiply the tokens of every row with a vector; a job is one row.

    Arguments in the memory:
        sizes: rows, tokens of a row, D, and one not used.
        places: addresses of the rows' addresses (K,), of the vector (D,), and of the products and
            norms (K, N); three not used.
    """
    unit, counters, threads, sizes, places = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    rows, tokens, width, _ = sizes
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
    """Sum the tokens of every row at unit norm and multiply the sums; a job is one row.

    Arguments in the memory:
        sizes: rows, tokens of a row, D, and sums of a row.
        places: addresses of the rows' addresses (K,), of the weights (K, W, N), the queries (W, D),
            and of the products and squares (K, W), the norms (K, N) and sums (threads, W, D).
    """
    unit, counters, threads, sizes, places = _unpack(memory)
    thread = next_number(counters + 8)
    if thread >= threads:
        return
    rows, tokens, width, count = sizes
    starts, weights = pointer(places[0], 1), pointer(places[1], unit)
    queries, products = pointer(places[2], unit), pointer(places[3], unit)
    squares, norms = pointer(places[4], unit), pointer(places[5], unit)
    sums = advance(pointer(places[6], unit), thread * count * width)
    while True:
        job = next_number(counters)
        if job >= rows:
            return
        for d in range(0, count * width, WIDTH):
            store(sums, d, splat(unit) * 0.0)
        for token in range(tokens):
            at = starts[job] + token * width * _BYTES
            square = splat(unit) * 0.0
            for d in range(0, width, WIDTH):
                x = load_half(at + d * _BYTES, unit)
                square = square + x * x
            norm = math.sqrt(lane_sum(square))
            norms[job * tokens + token] = norm
            for w in range(count):
                weight = weights[(job * count + w) * tokens + token]
                factor = weight * 0 if norm == 0 else weight / norm
                for d in range(0, width, WIDTH):
                    x = load_half(at + d * _BYTES, unit)
                    store(sums, w * width + d, load(sums, w * width + d) + x * factor)
        for w in range(count):
            product, square = splat(unit) * 0.0, splat(unit) * 0.0
            for d in range(w * width, (w + 1) * width, WIDTH):
                x = load(sums, d)
                product = product + x * load(queries, d)
                square = square + x * x
            products[job * count + w] = lane_sum(product)
            squares[job * count + w] = lane_sum(square)


def multiply_tokens(rows: Rows, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply tokens with a vector; see `muse_adapter.ops.token_products`.

    Args:
        rows: (K, ..., D) or K tensors (..., D), contiguous, float16; D is a multiple of WIDTH.
        vector: (D,) float32.
    """
    vector = vector.contiguous()
    products, norms = vector.new_empty(2, len(rows), rows[0].numel() // len(vector)).unbind(0)
    _run(token_products, rows, len(vector), 0, vector, products, norms)
    return products, norms


def pool_tokens(rows: Rows, weights: Tensor, queries: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sum tokens and multiply the sums; see `muse_adapter.ops.pooled_products`.

    Args:
        rows: As in `multiply_tokens`.
        weights: (K, W, N) float32.
        queries: (W, D) float32.
    """
    weights, queries = weights.contiguous(), queries.contiguous()
    count, width = queries.shape
    products, squares = weights.new_empty(2, len(rows), count).unbind(0)
    norms = weights.new_empty(len(rows), weights.shape[2])
    sums = weights.new_empty(torch.get_num_threads(), count, width)
    given = weights, queries, products, squares, norms, sums
    _run(pooled_products, rows, width, count, *given)
    return products, squares, norms


def _run(kernel: Kernel, rows: Rows, width: int, sums: int, *tensors: Tensor) -> None:
    count, numbers = len(rows), rows[0].numel()
    if isinstance(rows, Tensor):
        starts = rows.data_ptr() + np.arange(count) * (numbers * _BYTES)
    else:
        starts = np.array([row.data_ptr() for row in rows], dtype=np.int64)
    threads = torch.get_num_threads() if count * numbers >= MIN_NUMBERS else 1
    places = starts.ctypes.data, *addresses(*tensors)
    places += (0,) * (7 - len(places))
    kernel.run(torch.float32, threads, (count, numbers // width, width, sums), places)
