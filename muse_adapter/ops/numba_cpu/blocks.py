"""What both kernels of the scan share: how they cut the work, and how they read their tensors.

A block is WIDTH neighbouring channels; a job is one video and a run of blocks of one group. A job
goes through time in chunks: a chunk of the first block, then of the next one, and so on. Within a
chunk of a block the kernels take one state after the other, which stays in a register from the
first step of the chunk to the last; what belongs to all states of a step (step size, input, output)
stands in working memory that fits into the nearest cache.

What several jobs add to (the gradients of B and C) has a part for each of them, so that no sum
depends on who came first.

Tensors with a time axis come as tuples of integers (views): address, then strides in elements; the
last dimension is contiguous. The others are contiguous and come as addresses; what belongs to a
channel and a state is cut into blocks, (E // WIDTH, S, WIDTH). Time runs over the positions 0, ...,
valid - 1 of a video, or back from valid - 1 to 0.
"""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.elementary import softplus_and_slope
from muse_adapter.ops.numba_cpu.simd import WIDTH, inline, load, splat, store


@inline
def rows_of(source: Any, view: Any, video: int, block: int, position: int, step: int) -> Any:
    """Return the rows of a block from `position` on, one for each step of time.

    Args:
        source: the tensor (batch, L, E).
        view: its address and its strides of batch and time.
        step: 1, or -1 where time runs backwards.

    Returns:
        The tensor, the index of the first row, and the distance to the next one.
    """
    return source, video * view[1] + block * WIDTH + position * view[2], step * view[2]


@inline
def load_row(rows: Any, t: int) -> Any:
    """Load the row of step t."""
    source, at, by = rows
    return load(source, at + t * by)


@inline
def store_row(rows: Any, t: int, value: Any) -> None:
    """Write the row of step t."""
    target, at, by = rows
    store(target, at + t * by, value)


@inline
def bc_rows(source: Any, view: Any, video: int, block: int, position: int, step: int) -> Any:
    """Return the rows of B or C for a block, as `rows_of` does, then the stride of the states."""
    at = video * view[1] + block // view[5] * view[3] + position * view[2]
    return source, at, step * view[2], view[4]


@inline
def load_bc(rows: Any, own: bool, t: int, s: int) -> Any:
    """Load B or C of step t and state s; `own`: whether every channel has its own values."""
    source, at, by, by_state = rows
    at += t * by + s * by_state
    return load(source, at) if own else splat(source[at])


@inline
def load_steps(
    x: Any, delta: Any, bias: Any, softplus: int, count: int, to: Any, slopes: Any
) -> None:
    """Write what a chunk of a block needs of step sizes and inputs.

    Args:
        x, delta: rows of the inputs and of the step sizes before bias and softplus.
        bias: of the step sizes.
        count: steps.
        to: room for dt and for dt x of the chunk, each (steps, WIDTH).
        slopes: room for d dt / d delta; None where it is not wanted.
    """
    dts, dt_x = to
    for t in range(count):
        dt = load_row(delta, t) + bias
        slope = dt * 0.0 + 1.0
        if softplus:
            dt, slope = softplus_and_slope(dt)
        store(dts, t * WIDTH, dt)
        if slopes is not None:
            store(slopes, t * WIDTH, slope)
        store(dt_x, t * WIDTH, dt * load_row(x, t))
