"""Backward kernels: what a segment adds to the gradient of the state, and all gradients.

Programs and shared arguments are those of `muse_adapter.ops.triton_gpu.forward`; further
    dy0, dy1: (batch, L, E), contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from muse_adapter.ops.triton_gpu.elementary import (
    LN2,
    VARYING,
    either,
    gain_rows,
    part_rows,
    place,
    sigmoid,
    softplus,
    span,
    tiles,
)


@triton.jit(**VARYING)
def gradient_summaries(
    delta0, delta1, C0, C1, dy0, dy1,
    rates, bias, lengths, ends, totals,
    L0, L1, batch, segment, backwards,
    C_time, C_channels,
    C_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of the state that enters each segment, from the segment's own outputs alone.

    Args:
        ends: (segments, directions, batch, S, E); nobody reads the first segment's, which has no
            program.
        totals: (segments, directions, batch, E), the sums of the step sizes; likewise.
    """
    part = tl.program_id(1) + 1
    block, side, sides = place(E, BLOCK)
    second, video = side >= batch, (side % batch).to(tl.int64)
    length, valid, origin, step = span(lengths, L0, L1, side, batch, backwards, MASKED)
    e, s, live, stated, tile, in_tile = tiles(block, E, S, STATES, BLOCK)
    direction = side // batch
    rate = tl.load(rates + direction * S * E + tile, mask=in_tile, other=0.0)
    shift = tl.load(bias + direction * E + e, mask=live, other=0.0)
    delta = either(second, delta0, delta1) + video * length * E
    dy = either(second, dy0, dy1) + video * length * E
    C = either(second, C0, C1)
    C = gain_rows(C, block, video, length, C_time, C_channels, C_CONSTANT, S, BLOCK)
    if C_CONSTANT:
        gain_out = tl.load(C + tile, mask=in_tile, other=0.0).to(TYPE)

    g = tl.zeros([STATES, BLOCK], TYPE)
    total = tl.zeros([BLOCK], TYPE)
    begin = part * segment
    stop = tl.minimum(begin + segment, valid)
    for back in range(begin, stop):
        t = begin + stop - 1 - back
        position = origin + t * step
        above = tl.load(dy + position * E + e, mask=live, other=0.0).to(TYPE)
        dt = tl.load(delta + position * E + e, mask=live, other=0.0).to(TYPE) + shift
        if SOFTPLUS:
            dt = softplus(dt)
        if not C_CONSTANT:
            gain_out = tl.load(C + position * C_time + s, mask=stated, other=0.0).to(TYPE)[:, None]
        g = tl.exp2(dt[None, :] * rate) * (g + above[None, :] * gain_out)
        total += dt
    row = (part * sides + side).to(tl.int64)
    tl.store(ends + row * S * E + tile, g, mask=in_tile)
    tl.store(totals + row * E + e, total, mask=live)


@triton.jit(**VARYING)
def gradients(
    x0, x1, delta0, delta1, B0, B1, C0, C1,
    dy0, dy1,
    rates, D, bias, lengths, entries, saved_states, work,
    dx0, dx1, ddelta0, ddelta1, dB0, dB1, dC0, dC1,
    drates, dD, dbias, dinitial,
    L0, L1, batch, segment, backwards,
    B_time, B_channels, C_time, C_channels,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, ENTERED: tl.constexpr, INITIAL: tl.constexpr,
    CHUNK: tl.constexpr, RUN: tl.constexpr,
    E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """All gradients, chunk by chunk from the last step to the first.

    The states inside a chunk are computed anew: first those before each of its runs of RUN steps,
    which go to `work`, then, run by run, those of the steps, which stay in registers.

    Args:
        entries: (segments, directions, batch, S, E), with ENTERED: the gradients of the states
            that leave the segments; else zero.
        saved_states: (chunks, directions, batch, S, E), as `outputs` left it.
        work: (segments, directions, batch, CHUNK / RUN, S, E).
        dx0, dx1, ddelta0, ddelta1: (batch, L, E), contiguous.
        dB0, dB1, dC0, dC1: (blocks in a group, batch, L, G, S), or with CONSTANT
            (segments, batch, S, E).
        drates: (segments, directions, batch, S, E).
        dD, dbias: (segments, directions, batch, E).
        dinitial: (directions, batch, S, E), written with INITIAL: the gradient of the state that
            enters the first segment.
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
    first = video * length * E
    x, delta = either(second, x0, x1) + first, either(second, delta0, delta1) + first
    dx, ddelta = either(second, dx0, dx1) + first, either(second, ddelta0, ddelta1) + first
    dy = either(second, dy0, dy1) + first
    B, C = either(second, B0, B1), either(second, C0, C1)
    B = gain_rows(B, block, video, length, B_time, B_channels, B_CONSTANT, S, BLOCK)
    C = gain_rows(C, block, video, length, C_time, C_channels, C_CONSTANT, S, BLOCK)
    dB, dC = either(second, dB0, dB1), either(second, dC0, dC1)
    row = (part * sides + side).to(tl.int64)
    if B_CONSTANT:
        gain_in = tl.load(B + tile, mask=in_tile, other=0.0).to(TYPE)
        d_in = tl.zeros([STATES, BLOCK], TYPE)
        dB += (part * batch + video) * S * E
    else:
        dB, dB_time = part_rows(dB, block, video, batch, length, B_channels, E, S, BLOCK)
    if C_CONSTANT:
        gain_out = tl.load(C + tile, mask=in_tile, other=0.0).to(TYPE)
        d_out = tl.zeros([STATES, BLOCK], TYPE)
        dC += (part * batch + video) * S * E
    else:
        dC, dC_time = part_rows(dC, block, video, batch, length, C_channels, E, S, BLOCK)

    g = tl.zeros([STATES, BLOCK], TYPE)
    if ENTERED:
        g = tl.load(entries + row * S * E + tile, mask=in_tile, other=0.0)
    d_rate = tl.zeros([STATES, BLOCK], TYPE)
    d_skip = tl.zeros([BLOCK], TYPE)
    d_shift = tl.zeros([BLOCK], TYPE)
    work += row * (CHUNK // RUN) * S * E
    begin = part * segment
    stop = tl.minimum(begin + segment, valid)
    chunks = tl.maximum(stop - begin + CHUNK - 1, 0) // CHUNK
    for chunk_back in range(chunks):
        chunk = begin + (chunks - 1 - chunk_back) * CHUNK
        end = tl.minimum(chunk + CHUNK, stop)
        runs = (end - chunk + RUN - 1) // RUN
        entry = (chunk // CHUNK * sides + side).to(tl.int64)
        h = tl.load(saved_states + entry * S * E + tile, mask=in_tile, other=0.0)
        for run in range(runs - 1):
            tl.store(work + run * S * E + tile, h, mask=in_tile)
            for t in range(chunk + run * RUN, chunk + run * RUN + RUN):
                position = origin + t * step
                inputs = tl.load(x + position * E + e, mask=live, other=0.0).to(TYPE)
                dt = tl.load(delta + position * E + e, mask=live, other=0.0).to(TYPE) + shift
                if SOFTPLUS:
                    dt = softplus(dt)
                if not B_CONSTANT:
                    gain_in = tl.load(B + position * B_time + s, mask=stated, other=0.0)
                    gain_in = gain_in.to(TYPE)[:, None]
                h = tl.exp2(dt[None, :] * rate) * h + (dt * inputs)[None, :] * gain_in
        tl.debug_barrier()  # a lane may read from `work` what another has written
        for run_back in range(runs):
            run = runs - 1 - run_back
            if run_back > 0:
                h = tl.load(work + run * S * E + tile, mask=in_tile, other=0.0)
            before = ()
            inputs_of = ()
            raw_of = ()
            dt_of = ()
            for i in tl.static_range(RUN):
                t = chunk + run * RUN + i
                # A step behind the end has size and input zero, and changes nothing.
                here = live & (e < tl.where(t < end, E, 0))
                there = stated & (s < tl.where(t < end, S, 0))
                at = (origin + t * step) * E + e
                inputs = tl.load(x + at, mask=here, other=0.0).to(TYPE)
                raw = tl.load(delta + at, mask=here, other=0.0).to(TYPE) + shift
                dt = raw
                if SOFTPLUS:
                    dt = softplus(raw)
                dt = tl.where(here, dt, 0.0)
                if not B_CONSTANT:
                    gain_in = tl.load(B + (origin + t * step) * B_time + s, mask=there, other=0.0)
                    gain_in = gain_in.to(TYPE)[:, None]
                before = before + (h,)
                inputs_of = inputs_of + (inputs,)
                raw_of = raw_of + (raw,)
                dt_of = dt_of + (dt,)
                h = tl.exp2(dt[None, :] * rate) * h + (dt * inputs)[None, :] * gain_in
            for back in tl.static_range(RUN):
                t = chunk + run * RUN + RUN - 1 - back
                here = live & (e < tl.where(t < end, E, 0))
                there = stated & (s < tl.where(t < end, S, 0))
                position = origin + t * step
                inputs, raw = inputs_of[RUN - 1 - back], raw_of[RUN - 1 - back]
                dt = dt_of[RUN - 1 - back]
                if not B_CONSTANT:
                    gain_in = tl.load(B + position * B_time + s, mask=there, other=0.0)
                    gain_in = gain_in.to(TYPE)[:, None]
                above = tl.load(dy + position * E + e, mask=here, other=0.0).to(TYPE)
                if not C_CONSTANT:
                    gain_out = tl.load(C + position * C_time + s, mask=there, other=0.0)
                    gain_out = gain_out.to(TYPE)[:, None]
                to_out = above[None, :] * h
                g += above[None, :] * gain_out
                to_in = g * (dt * inputs)[None, :]
                if B_CONSTANT:
                    d_in += to_in
                else:
                    tl.store(dB + position * dB_time + s, tl.sum(to_in, 1), mask=there)
                if C_CONSTANT:
                    d_out += to_out
                else:
                    tl.store(dC + position * dC_time + s, tl.sum(to_out, 1), mask=there)
                d_driven = tl.sum(g * gain_in, 0)
                h = before[RUN - 1 - back]
                g *= tl.exp2(dt[None, :] * rate)
                d_decay = g * h
                d_rate += d_decay * dt[None, :]
                d_raw = d_driven * inputs + tl.sum(d_decay * rate, 0) * LN2
                if SOFTPLUS:
                    d_raw *= sigmoid(raw)
                d_skip += above * inputs
                d_shift += tl.where(here, d_raw, 0.0)
                tl.store(dx + position * E + e, d_driven * dt + skip * above, mask=here)
                tl.store(ddelta + position * E + e, d_raw, mask=here)
        tl.debug_barrier()  # the next chunk writes over `work`

    if INITIAL:  # noqa: SIM102 - a constant of the compiler, unlike `part`
        if part == 0:
            tl.store(dinitial + side.to(tl.int64) * S * E + tile, g, mask=in_tile)
    tl.store(drates + row * S * E + tile, d_rate, mask=in_tile)
    tl.store(dD + row * E + e, d_skip, mask=live)
    tl.store(dbias + row * E + e, d_shift, mask=live)
    if B_CONSTANT:
        tl.store(dB + tile, d_in, mask=in_tile)
    if C_CONSTANT:
        tl.store(dC + tile, d_out, mask=in_tile)
