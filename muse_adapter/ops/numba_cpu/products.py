"""Products of half-precision tokens with a vector, and their norms, each token read once.

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
from numba import config, types
from numba.extending import intrinsic
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import WIDTH, Lanes, load, pointer, splat
from muse_adapter.ops.rows import Rows

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


_unpack = unpacker(3, 4)


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


def multiply_tokens(rows: Rows, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Multiply tokens with a vector; see `muse_adapter.ops.token_products`.

    Args:
        rows: (K, ..., D) or K tensors (..., D), contiguous, float16; D is a multiple of WIDTH.
        vector: (D,) float32.

    Returns:
        Products and norms (K, N) float32.
    """
    count, numbers = len(rows), rows[0].numel()
    vector = vector.contiguous()
    products, norms = vector.new_empty(2, count, numbers // len(vector)).unbind(0)
    if isinstance(rows, Tensor):
        starts = rows.data_ptr() + np.arange(count) * (numbers * _BYTES)
    else:
        starts = np.array([row.data_ptr() for row in rows], dtype=np.int64)
    token_products.run(
        torch.float32,
        torch.get_num_threads() if count * numbers >= MIN_NUMBERS else 1,
        (count, products.shape[1], len(vector)),
        (starts.ctypes.data, *addresses(vector, products, norms)),
    )
    return products, norms
