"""Rows of neighbouring steps: read and computed as one tile, used one after the other.

A tile (STEPS, N) is spread over the lanes of a warp, every number once: one wide load for all its
steps, and softplus is computed once a channel. The recurrence wants each step as a row that lies
like the state, every number in the lanes of all its states. `unstack` turns a tile into its rows,
`stack` goes back; each passes once through shared memory, and so do their forms for two tiles.
"""

from __future__ import annotations

import triton
import triton.language as tl

from muse_adapter.ops.triton_gpu.elementary import softplus


@triton.jit
def second_of(a, b):
    """Return `b`."""
    return b


@triton.jit
def settled(tile):
    """Return the tile, computed where its numbers were loaded.

    The compiler moves elementwise operations behind a change of layout if it can. Behind
    `unstack` every number stands in several lanes, and each would compute its softplus. Through a
    scan (here over one element: no work) it moves nothing.
    """
    one = tl.reshape(tile, [1, tile.shape[0], tile.shape[1]])
    return tl.reshape(tl.associative_scan(one, 0, second_of), [tile.shape[0], tile.shape[1]])


@triton.jit
def unstack(tile, STEPS: tl.constexpr, N: tl.constexpr):
    """Tuple of the rows (N,) of a tile (STEPS, N); STEPS is 1, 2 or 4."""
    tl.static_assert(STEPS == 1 or STEPS == 2 or STEPS == 4)
    if STEPS == 1:
        rows = (tl.reshape(tile, [N]),)
    elif STEPS == 2:
        rows = tl.split(tl.permute(settled(tile), (1, 0)))
    else:
        even, odd = tl.split(tl.permute(tl.reshape(settled(tile), [2, 2, N]), (2, 0, 1)))
        first, third = tl.split(even)
        second, fourth = tl.split(odd)
        rows = (first, second, third, fourth)
    return rows


@triton.jit
def stack(rows, STEPS: tl.constexpr, N: tl.constexpr):
    """Tile (STEPS, N) of a tuple of rows (N,)."""
    if STEPS == 1:
        tile = tl.reshape(rows[0], [1, N])
    elif STEPS == 2:
        tile = settled(tl.permute(tl.join(rows[0], rows[1]), (1, 0)))
    else:
        joined = tl.join(tl.join(rows[0], rows[2]), tl.join(rows[1], rows[3]))
        tile = settled(tl.reshape(tl.permute(joined, (1, 2, 0)), [4, N]))
    return tile


@triton.jit
def unstack_pair(a, b, STEPS: tl.constexpr, N: tl.constexpr):
    """Rows of two tiles at once: one way through shared memory instead of two."""
    pairs = unstack(tl.reshape(tl.join(a, b), [STEPS, 2 * N]), STEPS, 2 * N)
    rows_a = ()
    rows_b = ()
    for i in tl.static_range(STEPS):
        row_a, row_b = tl.split(tl.reshape(pairs[i], [N, 2]))
        rows_a = rows_a + (row_a,)
        rows_b = rows_b + (row_b,)
    return rows_a, rows_b


@triton.jit
def stack_pair(rows_a, rows_b, STEPS: tl.constexpr, N: tl.constexpr):
    """Two tiles of their rows, likewise at once."""
    pairs = ()
    for i in tl.static_range(STEPS):
        pairs = pairs + (tl.reshape(tl.join(rows_a[i], rows_b[i]), [2 * N]),)
    return tl.split(tl.reshape(stack(pairs, STEPS, 2 * N), [STEPS, N, 2]))


@triton.jit
def steps_at(tensor, positions, apart, columns, inside, wanted):
    """Numbers (STEPS, N) at the positions, `apart` elements from one to the next; zero elsewhere.

    Args:
        tensor: address of position 0.
        positions: (STEPS,).
        apart: elements from one position to the next.
        columns: (N,), offsets within a position.
        inside: (STEPS,), steps that exist.
        wanted: (N,), columns that exist.
    """
    mask = inside[:, None] & wanted[None, :]
    return tl.load(tensor + positions[:, None] * apart + columns[None, :], mask=mask, other=0.0)


@triton.jit
def step_sizes(raw, shift, inside, live, SOFTPLUS: tl.constexpr, TYPE: tl.constexpr):
    """Step sizes (STEPS, N), zero for steps that do not exist: such a step changes no state."""
    dt = raw.to(TYPE) + shift[None, :]
    if SOFTPLUS:
        dt = softplus(dt)
    return tl.where(inside[:, None] & live[None, :], dt, 0.0)
