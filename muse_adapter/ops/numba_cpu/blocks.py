"""What both kernels of the scan share: how they are compiled, how they read a block of channels.

A job is one video and a run of blocks; a block is up to WIDTH neighbouring channels. Threads take jobs
from a common counter. What several jobs add to (the gradients of B and C) has a part for each of them,
so that no sum depends on who came first.

Tensors with a time axis come as tuples of integers: address, then strides in elements; channels (of x,
delta, y and their gradients) and states (of B and C) lie beside each other. The others are contiguous
and come as addresses. A pass over time reads position t, or length - 1 - t where time is reversed.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    exp2,
    inline,
    load,
    log1p,
    magnitude,
    splat,
    store,
    total,
    where_above,
)


def kernel(function: Callable[..., None]) -> Any:
    """Compile on first use, without the interpreter's lock, and keep the machine code on disk."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        # Numba sees that a cached kernel is stale by the time of the kernel's own file; the name
        # carries what goes into it from elsewhere.
        here = Path(__file__)
        source = here.read_bytes() + here.with_name("simd.py").read_bytes()
        function.__qualname__ += f"_{zlib.crc32(source):08x}"
        compiled = numba.njit(cache=True, **options)(function)
    except (OSError, RuntimeError):  # no source to stamp, or nowhere to write: compile every time
        return numba.njit(**options)(function)

    @functools.wraps(function)
    def run(*arguments: Any) -> None:
        try:
            compiled(*arguments)
        except OSError:
            # The machine code could not be written, but is there; the kernel itself has not run.
            compiled(*arguments)

    return run


@intrinsic
def next_job(context: Any, counter: Any) -> Any:
    """The number at the address `counter`, which every call raises by 1."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), lowered


@inline
def softplus_and_slope(v: Any) -> Any:
    """log(1 + exp(v)) and its derivative; above 20 they are v and 1, as in torch."""
    u = exp2(magnitude(v) * -LOG2E)
    one = u * 0.0 + 1.0
    value = where_above(v, 0.0, v, u * 0.0) + log1p(u)
    slope = where_above(v, 0.0, one, u) / (u + 1.0)
    return where_above(v, 20.0, v, value), where_above(v, 20.0, one, slope)


@inline
def load_part(source: Any, index: int, lanes: int, scratch: Any) -> Any:
    """The first `lanes` numbers from source[index] on, then zeros."""
    if lanes == WIDTH:
        return load(source, index)
    for lane in range(WIDTH):
        scratch[lane] = source[index + lane] if lane < lanes else 0.0
    return load(scratch, 0)


@inline
def store_part(target: Any, index: int, value: Any, lanes: int, scratch: Any) -> None:
    """Write the first `lanes` numbers of `value` from target[index] on."""
    if lanes == WIDTH:
        store(target, index, value)
    else:
        store(scratch, 0, value)
        for lane in range(lanes):
            target[index + lane] = scratch[lane]


@inline
def load_rates(A: Any, rates: Any, channel: int, lanes: int, states: int) -> None:
    """rates[s, lane] = A log2(e), so that exp(dt A) = 2**(dt rate)."""
    for s in range(states):
        for lane in range(WIDTH):
            rate = A[(channel + lane) * states + s] * LOG2E if lane < lanes else 0.0
            rates[s * WIDTH + lane] = rate


@inline
def gains(
    source: Any, row: int, view: Any, channel: int, lanes: int, states: int, own: Any
) -> int:
    """Find the states of B or C that a block uses at a row.

    Returns:
        Where they stand in `source`, for a block inside one group. For a block of several groups
        `own[s, lane]` is filled from each lane's group instead.
    """
    if view[5]:
        for lane in range(WIDTH):
            group = row + (channel + min(lane, lanes - 1)) // view[4] * view[3]
            for s in range(states):
                own[s * WIDTH + lane] = source[group + s]
    return row + channel // view[4] * view[3]


@inline
def gain(source: Any, row: int, view: Any, own: Any, s: int) -> Any:
    """B or C of state s for each lane, after `gains`."""
    return load(own, s * WIDTH) if view[5] else splat(source[row + s])


@inline
def add_lanes(
    source: Any, target: Any, row: int, stride: int, view: Any, channel: int, lanes: int, states: int
) -> None:
    """Add source[s, lane] to target[group, s], over the lanes of each group."""
    for s in range(states):
        if view[5]:
            for lane in range(lanes):
                group = (channel + lane) // view[4]
                target[row + group * stride + s] += source[s * WIDTH + lane]
        else:
            group = channel // view[4]
            target[row + group * stride + s] += total(load(source, s * WIDTH))
