"""Forward kernels: what a segment adds to the state, the states between segments, the outputs.

A program works for BLOCK neighbouring channels with all their states, a tile (STATES, BLOCK), over
one segment of time of one video in one direction (a side). Segments are counted in the order of
time: step t of a video with `valid` tokens is position t, or valid - 1 - t in the direction that
runs backwards.

Arguments that kernels share (0 and 1: of the first and the second direction)
    x, delta: (batch, L, E), contiguous.
    B, C: (batch, L, G, S), positions B_time (C_time) apart, the rest contiguous, B_channels
        (C_channels) to a group; or with CONSTANT (S, E).
    rates: (directions, S, E), A log2(e).
    D, bias: (directions, E).
    lengths: (batch,), int32, read with MASKED only. Behind them nothing is read or written.
    segment: steps in a segment.
    backwards: bit d is set if direction d runs backwards.
    TYPE: type of the state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from muse_adapter.ops.triton_gpu.elementary import (
    VARYING,
    either,
    gain_rows,
    place,
    softplus,
    span,
    tiles,
)


@triton.jit(**VARYING)
def summaries(
    x0, x1, delta0, delta1, B0, B1,
    rates, bias, lengths, ends, totals,
    L0, L1, batch, segment, backwards,
    B_time, B_channels,
    B_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
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
    direction = side // batch
    rate = tl.load(rates + direction * S * E + tile, mask=in_tile, other=0.0)
    shift = tl.load(bias + direction * E + e, mask=live, other=0.0)
    x = either(second, x0, x1) + video * length * E
    delta = either(second, delta0, delta1) + video * length * E
    B = either(second, B0, B1)
    B = gain_rows(B, block, video, length, B_time, B_channels, B_CONSTANT, S, BLOCK)
    if B_CONSTANT:
        gain_in = tl.load(B + tile, mask=in_tile, other=0.0).to(TYPE)

    h = tl.zeros([STATES, BLOCK], TYPE)
    total = tl.zeros([BLOCK], TYPE)
    begin = part * segment
    for t in range(begin, tl.minimum(begin + segment, valid)):
        position = origin + t * step
        inputs = tl.load(x + position * E + e, mask=live, other=0.0).to(TYPE)
        dt = tl.load(delta + position * E + e, mask=live, other=0.0).to(TYPE) + shift
        if SOFTPLUS:
            dt = softplus(dt)
        if not B_CONSTANT:
            gain_in = tl.load(B + position * B_time + s, mask=stated, other=0.0).to(TYPE)[:, None]
        h = tl.exp2(dt[None, :] * rate) * h + (dt * inputs)[None, :] * gain_in
        total += dt
    row = (part * sides + side).to(tl.int64)
    tl.store(ends + row * S * E + tile, h, mask=in_tile)
    tl.store(totals + row * E + e, total, mask=live)


@triton.jit(**VARYING)
def carries(
    ends, totals, rates, first,
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
    rate = tl.load(rates + side // batch * S * E + tile, mask=in_tile, other=0.0)
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
    rates, D, bias, lengths, entries, y0, y1,
    saved_states, last,
    L0, L1, batch, segment, backwards,
    B_time, B_channels, C_time, C_channels,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, ENTERED: tl.constexpr, SAVED: tl.constexpr, CHUNK: tl.constexpr,
    E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Write outputs, last states, and with SAVED the state before every chunk of CHUNK steps.

    Args:
        entries: (segments, directions, batch, S, E), with ENTERED: the states that enter; else
            zero.
        y0, y1: (batch, L, E), contiguous.
        saved_states: (chunks, directions, batch, S, E).
        last: (directions, batch, S, E).
        segment: a multiple of CHUNK.
    """
    part = tl.program_id(1)
    block, side, sides = place(E, BLOCK)
    second, video = side >= batch, (side % batch).to(tl.int64)
    length, valid, origin, step = span(lengths, L0, L1, side, batch, backwards, MASKED)
    e, s, live, stated, tile, in_tile = tiles(block, E, S, STATES, BLOCK)
    direction = side // batch
    rate = tl.load(rates + direction * S * E + tile, mask=in_tile, other=0.0)
    skip = tl.load(D + direction * E + e, mask=live, other=0.0)
    shift = tl.load(bias + direction * E + e, mask=live, other=0.0)
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
    for chunk in range(begin, stop, CHUNK):
        if SAVED:
            row = (chunk // CHUNK * sides + side).to(tl.int64)
            tl.store(saved_states + row * S * E + tile, h, mask=in_tile)
        for t in range(chunk, tl.minimum(chunk + CHUNK, stop)):
            position = origin + t * step
            inputs = tl.load(x + position * E + e, mask=live, other=0.0).to(TYPE)
            dt = tl.load(delta + position * E + e, mask=live, other=0.0).to(TYPE) + shift
            if SOFTPLUS:
                dt = softplus(dt)
            if not B_CONSTANT:
                gain_in = tl.load(B + position * B_time + s, mask=stated, other=0.0)
                gain_in = gain_in.to(TYPE)[:, None]
            if not C_CONSTANT:
                gain_out = tl.load(C + position * C_time + s, mask=stated, other=0.0)
                gain_out = gain_out.to(TYPE)[:, None]
            h = tl.exp2(dt[None, :] * rate) * h + (dt * inputs)[None, :] * gain_in
            tl.store(y + position * E + e, tl.sum(h * gain_out, 0) + skip * inputs, mask=live)
    if part == tl.num_programs(1) - 1:
        tl.store(last + side.to(tl.int64) * S * E + tile, h, mask=in_tile)
