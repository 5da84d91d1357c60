"""The gradients of B and C in the backward kernel: sums over the channels of a job.

Where B or C has a value for every channel, its gradient is written as it arises. Where channels
share it, the products of a chunk are summed over the lanes of a register, then over the blocks of
the job; only then are they written.

Rows are as of `blocks.bc_rows`.
"""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.simd import WIDTH, inline, lane_sums, load, store


@inline
def gradient_rows(
    target: Any, to: Any, view: Any, video: int, first: int, blocks_per_job: int, position: int,
    step: int,
) -> Any:  # fmt: skip
    """Return the rows of the gradient of B or C of a job, from `position` on.

    Args:
        target: the gradient.
        to: its address and strides of part, batch, time, group and state.
        view: of B or C itself.
        video, first, blocks_per_job: of the job, its first block, and how many blocks it has.
        position, step: as in `blocks.rows_of`.
    """
    part, group = first % view[5] // blocks_per_job, first // view[5]
    at = part * to[1] + video * to[2] + position * to[3] + group * to[4]
    return target, at, step * to[3], to[5]


@inline
def clear_gradient(rows: Any, own: int, length: int, states: int, zero: Any) -> None:
    """Set the gradient of B or C of a job to zero, before anything is added.

    Args:
        rows: those of the job from the first position on.
        own: whether every channel has its own values.
        length: positions; what is constant in time has one row for all of them, also for none.
        states: S.
        zero: a vector.
    """
    target, row, by, by_state = rows
    for t in range(length if by else 1):
        for s in range(states):
            at = row + t * by + s * by_state
            if own:
                store(target, at, zero)
            else:
                target[at] = 0.0


@inline
def add_lanes(rows: Any, t: int, s: int, value: Any) -> None:
    """Add to the gradients of a step, where every channel has its own."""
    target, at, by, by_state = rows
    at += t * by + s * by_state
    store(target, at, load(target, at) + value)


@inline
def sum_lanes(products: Any, sums: Any, count: int, more: bool) -> None:
    """Sum each of a chunk's products over its lanes.

    Args:
        products: (steps, WIDTH), where steps are a multiple of WIDTH.
        sums: (steps,); is added to if `more`, else written.
        count: how many of the steps matter.
    """
    for t in range(0, count, WIDTH):
        total = lane_sums(products, t * WIDTH)
        store(sums, t, load(sums, t) + total if more else total)


@inline
def add_sums(sums: Any, chunk: int, rows: Any, count: int, states: int) -> None:
    """Add the sums of a chunk, (S, chunk), to the gradient."""
    target, row, by, by_state = rows
    for t in range(count):
        for s in range(states):
            target[row + t * by + s * by_state] += sums[s * chunk + t]
