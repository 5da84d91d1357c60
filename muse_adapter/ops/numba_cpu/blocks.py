"""What both kernels of the scan share: how they are compiled, and how they read B and C.

A block is WIDTH neighbouring channels; a job is one video and a run of blocks of one group. Threads
take jobs from a common counter. What several jobs add to (the gradients of B and C) has a part for
each of them, so that no sum depends on who came first.

Tensors with a time axis come as tuples of integers: address, then strides in elements; their
channels lie beside each other. The others are contiguous and come as addresses; what belongs to a
channel and a state is cut into blocks, (E // WIDTH, S, WIDTH). Time runs over the positions 0, ...,
valid - 1 of a video, or back from valid - 1 to 0.
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

from muse_adapter.ops.numba_cpu.simd import WIDTH, inline, load, pointer, splat, store, totals
from muse_adapter.ops.operator import NEGLIGIBLE


def kernel(function: Callable[..., None]) -> Callable[..., None]:
    """Compile on first use, without the interpreter's lock, and keep the machine code on disk."""
    options = {"nogil": True, "error_model": "numpy"}
    try:
        # Numba tells a stale kernel by the time of the file that it stands in; the name of the
        # kernel carries what comes from the others.
        files = sorted(Path(__file__).parent.glob("*.py"))
        source = b"".join(file.read_bytes() for file in files)
        source += repr(NEGLIGIBLE).encode()
        function.__qualname__ += f"_{zlib.crc32(source):08x}"
        compiled = numba.njit(cache=True, **options)(function)
    except (OSError, RuntimeError):  # no source to stamp, or nowhere to write: compile every time
        return numba.njit(**options)(function)

    @functools.wraps(function)
    def run(*arguments: Any) -> None:
        nonlocal compiled
        try:
            compiled(*arguments)
        except OSError:
            # The cache could not be read or written (a full disk, another user's files). The kernel
            # itself touches no files and has not run.
            compiled = numba.njit(**options)(function)
            compiled(*arguments)

    return run


@intrinsic
def next_number(context: Any, counter: Any) -> Any:
    """The number at the address `counter`; every call, from any thread, raises it by 1."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", place, ir.IntType(64)(1), "monotonic")

    return types.int64(types.int64), lowered


@inline
def gain(source: Any, row: int, view: Any, s: int) -> Any:
    """B or C of state s for the channels of the block whose values begin at `row`."""
    return load(source, row + s * view[4]) if view[6] else splat(source[row + s * view[4]])


@inline
def add_gains(
    source: Any, unit: float, to: Any, view: Any, job: Any, steps: Any, states: int
) -> None:
    """Add what a chunk has gathered for the gradient of B or C.

    Args:
        source: source[t, s, lane], with room for WIDTH vectors behind the last.
        unit: 1 in the type of the state.
        to: address of the gradient, strides of part, batch, time, group and state (1 where a group
            shares its values).
        view: of B or C itself.
        job: video, first block, blocks in a job.
        steps: position of the first step, direction of time, number of steps.
        states: S.
    """
    video, first, longest = job
    position, step, count = steps
    target = pointer(to[0], unit)
    row = first % view[5] // longest * to[1] + video * to[2] + first // view[5] * to[4]
    row += position * to[3]
    if view[6]:
        for t in range(count):
            for s in range(states):
                at = row + t * step * to[3] + s * to[5]
                store(target, at, load(target, at) + load(source, (t * states + s) * WIDTH))
    else:
        # The sums over the lanes take the place of vectors that have been read.
        for i in range(0, count * states, WIDTH):
            store(source, i, totals(source, i * WIDTH))
        for t in range(count):
            at = row + t * step * to[3]
            for s in range(states):
                target[at + s] += source[t * states + s]
