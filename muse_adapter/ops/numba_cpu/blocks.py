"""What both kernels of the scan share: how they cut the work, and how they read B and C.

A block is WIDTH neighbouring channels; a job is one video and a run of blocks of one group. What
several jobs add to (the gradients of B and C) has a part for each of them, so that no sum depends
on who came first.

Tensors with a time axis come as tuples of integers: address, then strides in elements; their
channels lie beside each other. The others are contiguous and come as addresses; what belongs to a
channel and a state is cut into blocks, (E // WIDTH, S, WIDTH). Time runs over the positions 0, ...,
valid - 1 of a video, or back from valid - 1 to 0.
"""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.simd import WIDTH, inline, load, splat, store, totals


@inline
def gain(source: Any, row: int, view: Any, s: int) -> Any:
    """B or C of state s for the channels of the block whose values begin at `row`."""
    return load(source, row + s * view[4]) if view[6] else splat(source[row + s * view[4]])


@inline
def gain_row(to: Any, view: Any, video: int, first: int, longest: int) -> int:
    """Where the gradient of B or C of a job begins.

    Args:
        to: address of the gradient, strides of part, batch, time, group and state.
        view: of B or C itself.
        video, first, longest: of the job, its first block, and how many blocks it has.
    """
    return first % view[5] // longest * to[1] + video * to[2] + first // view[5] * to[4]


@inline
def clear_gains(
    target: Any, row: int, to: Any, own: int, length: int, states: int, zero: Any
) -> None:
    """Set the gradient of B or C of a job to zero, before anything is added.

    Args:
        target, row, to, own, states: as in `add_gains`.
        length: positions; what is constant in time has one row for all of them, also for none.
        zero: a vector.
    """
    for position in range(length if to[3] else 1):
        for s in range(states):
            at = row + position * to[3] + s * to[5]
            if own:
                store(target, at, zero)
            else:
                target[at] = 0.0


@inline
def add_gains(
    source: Any, target: Any, row: int, to: Any, own: int, steps: Any, states: int
) -> None:
    """Add what a block has gathered over a chunk for the gradient of B or C.

    Args:
        source: source[t, s, lane], with room for WIDTH vectors behind the last; written over.
        target, row, to: the gradient, where the job's begins, and its strides, as in `gain_row`.
        own: whether every channel has its own values.
        steps: position of the first step, direction of time, number of steps.
        states: S.
    """
    position, step, count = steps
    row += position * to[3]
    if own:
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
