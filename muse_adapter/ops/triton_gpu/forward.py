"""Forward kernels: what a segment adds to the state, the states between segments, the outputs.

A program works for BLOCK neighbouring channels with all their states, a tile (STATES, BLOCK), over
one segment of time of one video in one direction (a side). Segments are counted in the order of
time: step t of a video with `valid` tokens is position t, or valid - 1 - t in the direction that
runs backwards. STEPS neighbouring steps are read at once, while those before them are worked on.

Arguments that kernels share (0 and 1: of the first and the second direction)
    x, delta: (batch, L, E), contiguous.
    B, C: (batch, L, G, S), positions B_time (C_time) apart, the rest contiguous, B_channels
        (C_channels) to a group; or with CONSTANT (S, E).
    A: (directions, S, E), in the type of the state.
    D, bias: (E,), contiguous.
    lengths: (batch,), int32, read with MASKED only. Behind them nothing is read or written.
    segment: steps in a segment.
    STEPS: steps that are read at once.
    AHEAD: tiles of STEPS steps that are held: one is worked on, the others are on their way.
    backwards: bit d is set if direction d runs backwards.
    TYPE: type of the state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from muse_adapter.ops.triton_gpu.elementary import (
    LOG2E,
    VARYING,
    channels_first,
    either,
    gain_rows,
    place,
    span,
    tiles,
    weights_at,
)
from muse_adapter.ops.triton_gpu.time_rows import stack, step_sizes, steps_at, unstack, unstack_pair


@triton.jit(**VARYING)
def summaries(
    x0, x1, delta0, delta1, B0, B1,
    A, bias0, bias1, lengths, ends, totals,
    L0, L1, batch, segment, backwards,
    B_time, B_channels,
    B_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    STEPS: tl.constexpr, AHEAD: tl.constexpr,
    E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """State at the end of each segment from zero at its start, and its sum of step sizes.

    Args:
        ends: (segments, directions, batch, S, E); nobody reads the last segment's, which has no
            program.
        totals: (segments, directions, batch, E), likewise.
    """
    part = tl.program_id(1)
    block, side, sides = place(E, BLOCK)
    second, video = side >= batch, (side % batch).to(tl.int64)
    length, valid, origin, step = span(lengths, L0, L1, side, batch, backwards, MASKED)
    e, s, live, stated, tile, in_tile = tiles(block, E, S, STATES, BLOCK)
    rate = tl.load(A + side // batch * S * E + tile, mask=in_tile, other=0.0) * LOG2E
    shift = weights_at(either(second, bias0, bias1), e, live, TYPE)
    x = either(second, x0, x1) + video * length * E
    delta = either(second, delta0, delta1) + video * length * E
    B = either(second, B0, B1)
    B = gain_rows(B, block, video, length, B_time, B_channels, B_CONSTANT, S, BLOCK)
    if B_CONSTANT:
        gain_in = tl.load(B + tile, mask=in_tile, other=0.0).to(TYPE)

    h = tl.zeros([STATES, BLOCK], TYPE)
    total = tl.zeros([STEPS, BLOCK], TYPE)
    begin = part * segment
    stop = tl.minimum(begin + segment, valid)
    for t in tl.range(begin, stop, STEPS, num_stages=AHEAD):
        steps = t + tl.arange(0, STEPS)
        positions, inside = origin + steps * step, steps < stop
        inputs = steps_at(x, positions, E, e, inside, live).to(TYPE)
        raw = steps_at(delta, positions, E, e, inside, live)
        dt = step_sizes(raw, shift, inside, live, SOFTPLUS, TYPE)
        dts, driven = unstack_pair(dt, dt * inputs, STEPS, BLOCK)
        if not B_CONSTANT:
            gains_in = unstack(steps_at(B, positions, B_time, s, inside, stated), STEPS, STATES)
        for i in tl.static_range(STEPS):
            if not B_CONSTANT:
                gain_in = gains_in[i][:, None]
            h = tl.exp2(dts[i][None, :] * rate) * h + driven[i][None, :] * gain_in
        total += dt
    row = (part * sides + side).to(tl.int64)
    tl.store(ends + row * S * E + tile, h, mask=in_tile)
    tl.store(totals + row * E + e, tl.sum(total, 0), mask=live)


@triton.jit(**VARYING)
def carries(
    ends, totals, A, first,
    batch, segments, from_last,
    GIVEN: tl.constexpr, E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr,
    BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Replace what each segment adds to the state by the state that enters it.

    Args:
        ends, totals: as in `summaries`; `ends` is written over.
        first: (directions, batch, S, E), with GIVEN: what enters the first segment; else zero.
        from_last: 1: the last segment comes first (gradients run against time).
    """
    block, side, sides = place(E, BLOCK)
    e, _, live, _, tile, in_tile = tiles(block, E, S, STATES, BLOCK)
    rate = tl.load(A + side // batch * S * E + tile, mask=in_tile, other=0.0) * LOG2E
    h = tl.zeros([STATES, BLOCK], TYPE)
    if GIVEN:
        h = tl.load(first + side.to(tl.int64) * S * E + tile, mask=in_tile, other=0.0)
    for i in range(segments):
        part = from_last * (segments - 1) + i * (1 - 2 * from_last)
        row = (part * sides + side).to(tl.int64)
        if i < segments - 1:
            added = tl.load(ends + row * S * E + tile, mask=in_tile, other=0.0)
            total = tl.load(totals + row * E + e, mask=live, other=0.0)
            tl.store(ends + row * S * E + tile, h, mask=in_tile)
            h = tl.exp2(total[None, :] * rate) * h + added
        else:
            tl.store(ends + row * S * E + tile, h, mask=in_tile)


@triton.jit(**VARYING)
def outputs(
    x0, x1, delta0, delta1, B0, B1, C0, C1,
    A, D0, D1, bias0, bias1, lengths, entries, y0, y1,
    saved_states, last0, last1,
    L0, L1, batch, segment, backwards,
    B_time, B_channels, C_time, C_channels,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, ENTERED: tl.constexpr, SAVED: tl.constexpr, CHUNK: tl.constexpr,
    STEPS: tl.constexpr, AHEAD: tl.constexpr,
    E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Write outputs, last states, and with SAVED the state before every chunk of CHUNK steps.

    Args:
        entries: (segments, directions, batch, S, E), with ENTERED: the states that enter; else
            zero.
        y0, y1: (batch, L, E), contiguous.
        saved_states: (chunks, directions, batch, S, E).
        last0, last1: (batch, E, S).
        segment: a multiple of CHUNK.
    """
    part = tl.program_id(1)
    block, side, sides = place(E, BLOCK)
    second, video = side >= batch, (side % batch).to(tl.int64)
    length, valid, origin, step = span(lengths, L0, L1, side, batch, backwards, MASKED)
    e, s, live, stated, tile, in_tile = tiles(block, E, S, STATES, BLOCK)
    rate = tl.load(A + side // batch * S * E + tile, mask=in_tile, other=0.0) * LOG2E
    skip = weights_at(either(second, D0, D1), e, live, TYPE)
    shift = weights_at(either(second, bias0, bias1), e, live, TYPE)
    x = either(second, x0, x1) + video * length * E
    delta = either(second, delta0, delta1) + video * length * E
    y = either(second, y0, y1) + video * length * E
    B, C = either(second, B0, B1), either(second, C0, C1)
    B = gain_rows(B, block, video, length, B_time, B_channels, B_CONSTANT, S, BLOCK)
    C = gain_rows(C, block, video, length, C_time, C_channels, C_CONSTANT, S, BLOCK)
    if B_CONSTANT:
        gain_in = tl.load(B + tile, mask=in_tile, other=0.0).to(TYPE)
    if C_CONSTANT:
        gain_out = tl.load(C + tile, mask=in_tile, other=0.0).to(TYPE)

    h = tl.zeros([STATES, BLOCK], TYPE)
    if ENTERED:
        row = (part * sides + side).to(tl.int64)
        h = tl.load(entries + row * S * E + tile, mask=in_tile, other=0.0)
    begin = part * segment
    stop = tl.minimum(begin + segment, valid)
    for t in tl.range(begin, stop, STEPS, num_stages=AHEAD):
        if SAVED:
            row = sides.to(tl.int64) * (t // CHUNK) + side
            tl.store(saved_states + row * S * E + tile, h, mask=in_tile & (t % CHUNK == 0))
        steps = t + tl.arange(0, STEPS)
        positions, inside = origin + steps * step, steps < stop
        inputs = steps_at(x, positions, E, e, inside, live).to(TYPE)
        raw = steps_at(delta, positions, E, e, inside, live)
        dt = step_sizes(raw, shift, inside, live, SOFTPLUS, TYPE)
        dts, driven = unstack_pair(dt, dt * inputs, STEPS, BLOCK)
        if not B_CONSTANT:
            gains_in = steps_at(B, positions, B_time, s, inside, stated)
        if not C_CONSTANT:
            gains_out = steps_at(C, positions, C_time, s, inside, stated)
        if not B_CONSTANT and not C_CONSTANT:
            rows_in, rows_out = unstack_pair(gains_in, gains_out, STEPS, STATES)
        elif not B_CONSTANT:
            rows_in = unstack(gains_in, STEPS, STATES)
        elif not C_CONSTANT:
            rows_out = unstack(gains_out, STEPS, STATES)
        sums = ()
        for i in tl.static_range(STEPS):
            if not B_CONSTANT:
                gain_in = rows_in[i][:, None]
            if not C_CONSTANT:
                gain_out = rows_out[i][:, None]
            h = tl.exp2(dts[i][None, :] * rate) * h + driven[i][None, :] * gain_in
            sums = sums + (tl.sum(h * gain_out, 0),)
        total = stack(sums, STEPS, BLOCK) + skip[None, :] * inputs
        target = y + positions[:, None] * E + e[None, :]
        tl.store(target, total, mask=inside[:, None] & live[None, :])
    if part == tl.num_programs(1) - 1:
        last = either(second, last0, last1) + video * S * E
        tl.store(last + channels_first(e, s, S), h, mask=in_tile)
