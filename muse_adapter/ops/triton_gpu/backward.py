"""Backward kernels: what a segment adds to the gradient of the state, and all gradients.

Programs and shared arguments are those of `muse_adapter.ops.triton_gpu.forward`; further
    dy0, dy1: (batch, L, E), contiguous.
"""

from __future__ import annotations

import triton
import triton.language as tl

from muse_adapter.ops.triton_gpu.elementary import (
    LN2,
    LOG2E,
    VARYING,
    channels_first,
    either,
    gain_rows,
    part_rows,
    place,
    sigmoid,
    span,
    tiles,
    weights_at,
)
from muse_adapter.ops.triton_gpu.time_rows import (
    stack,
    stack_pair,
    step_sizes,
    steps_at,
    unstack,
    unstack_pair,
)


@triton.jit(**VARYING)
def gradient_summaries(
    delta0, delta1, C0, C1, dy0, dy1,
    A, bias0, bias1, lengths, ends, totals,
    L0, L1, batch, segment, backwards,
    C_time, C_channels,
    C_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr, MASKED: tl.constexpr,
    STEPS: tl.constexpr, AHEAD: tl.constexpr,
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
    rate = tl.load(A + side // batch * S * E + tile, mask=in_tile, other=0.0) * LOG2E
    shift = weights_at(either(second, bias0, bias1), e, live, TYPE)
    delta = either(second, delta0, delta1) + video * length * E
    dy = either(second, dy0, dy1) + video * length * E
    C = either(second, C0, C1)
    C = gain_rows(C, block, video, length, C_time, C_channels, C_CONSTANT, S, BLOCK)
    if C_CONSTANT:
        gain_out = tl.load(C + tile, mask=in_tile, other=0.0).to(TYPE)

    g = tl.zeros([STATES, BLOCK], TYPE)
    total = tl.zeros([STEPS, BLOCK], TYPE)
    begin = part * segment
    stop = tl.minimum(begin + segment, valid)
    for back in tl.range(begin, stop, STEPS, num_stages=AHEAD):
        steps = begin + stop - 1 - back - tl.arange(0, STEPS)
        positions, inside = origin + steps * step, steps >= begin
        above = steps_at(dy, positions, E, e, inside, live)
        raw = steps_at(delta, positions, E, e, inside, live)
        dt = step_sizes(raw, shift, inside, live, SOFTPLUS, TYPE)
        dts, dys = unstack_pair(dt, above, STEPS, BLOCK)
        if not C_CONSTANT:
            gains_out = unstack(steps_at(C, positions, C_time, s, inside, stated), STEPS, STATES)
        for i in tl.static_range(STEPS):
            if not C_CONSTANT:
                gain_out = gains_out[i][:, None]
            g = tl.exp2(dts[i][None, :] * rate) * (g + dys[i][None, :] * gain_out)
        total += dt
    row = (part * sides + side).to(tl.int64)
    tl.store(ends + row * S * E + tile, g, mask=in_tile)
    tl.store(totals + row * E + e, tl.sum(total, 0), mask=live)


@triton.jit(**VARYING)
def gradients(
    x0, x1, delta0, delta1, B0, B1, C0, C1,
    dy0, dy1,
    A, D0, D1, bias0, bias1, lengths, entries, saved_states, work,
    dx0, dx1, ddelta0, ddelta1, dB0, dB1, dC0, dC1,
    dweights, dinitial,
    L0, L1, batch, segment, backwards,
    B_time, B_channels, C_time, C_channels,
    B_CONSTANT: tl.constexpr, C_CONSTANT: tl.constexpr, SOFTPLUS: tl.constexpr,
    MASKED: tl.constexpr, ENTERED: tl.constexpr, INITIAL: tl.constexpr,
    CHUNK: tl.constexpr, STEPS: tl.constexpr, WIDE: tl.constexpr, AHEAD: tl.constexpr,
    E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """All gradients, chunk by chunk from the last step to the first.

    The states inside a chunk are computed anew: first those before each of its runs of STEPS steps,
    which go to `work`, then, run by run, those of the steps, which stay in registers.

    Args:
        entries: (segments, directions, batch, S, E), with ENTERED: the gradients of the states
            that leave the segments; else zero.
        saved_states: (chunks, directions, batch, S, E), as `outputs` left it.
        work: (segments, directions, batch, CHUNK / STEPS, S, E).
        dx0, dx1, ddelta0, ddelta1: (batch, L, E), contiguous.
        dB0, dB1, dC0, dC1: (blocks in a group, batch, L, G, S), or with CONSTANT
            (segments, batch, S, E).
        dweights: (segments, directions, batch, E S + 2 E): of A (E, S), D and bias.
        dinitial: (directions, batch, S, E), written with INITIAL: the gradient of the state that
            enters the first segment.
        segment: a multiple of CHUNK.
        WIDE: steps that are read at once where states are computed anew, a multiple of STEPS.
    """
    part = tl.program_id(1)
    block, side, sides = place(E, BLOCK)
    second, video = side >= batch, (side % batch).to(tl.int64)
    length, valid, origin, step = span(lengths, L0, L1, side, batch, backwards, MASKED)
    e, s, live, stated, tile, in_tile = tiles(block, E, S, STATES, BLOCK)
    rate = tl.load(A + side // batch * S * E + tile, mask=in_tile, other=0.0) * LOG2E
    skip = weights_at(either(second, D0, D1), e, live, TYPE)
    shift = weights_at(either(second, bias0, bias1), e, live, TYPE)
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
    d_skip = tl.zeros([STEPS, BLOCK], TYPE)
    d_shift = tl.zeros([STEPS, BLOCK], TYPE)
    work += row * (CHUNK // STEPS) * S * E
    begin = part * segment
    stop = tl.minimum(begin + segment, valid)
    chunks = tl.maximum(stop - begin + CHUNK - 1, 0) // CHUNK
    for chunk_back in range(chunks):
        chunk = begin + (chunks - 1 - chunk_back) * CHUNK
        end = tl.minimum(chunk + CHUNK, stop)
        runs = (end - chunk + STEPS - 1) // STEPS
        entry = sides.to(tl.int64) * (chunk // CHUNK) + side
        h = tl.load(saved_states + entry * S * E + tile, mask=in_tile, other=0.0)
        for run in tl.range(0, runs, WIDE // STEPS, num_stages=AHEAD):
            steps = chunk + run * STEPS + tl.arange(0, WIDE)
            positions, inside = origin + steps * step, steps < end
            inputs = steps_at(x, positions, E, e, inside, live).to(TYPE)
            raw = steps_at(delta, positions, E, e, inside, live)
            dt = step_sizes(raw, shift, inside, live, SOFTPLUS, TYPE)
            dts, driven = unstack_pair(dt, dt * inputs, WIDE, BLOCK)
            if not B_CONSTANT:
                rows_in = unstack(steps_at(B, positions, B_time, s, inside, stated), WIDE, STATES)
            for i in tl.static_range(WIDE):
                if i % STEPS == 0:
                    tl.store(work + (run + i // STEPS) * S * E + tile, h, mask=in_tile)
                if not B_CONSTANT:
                    gain_in = rows_in[i][:, None]
                h = tl.exp2(dts[i][None, :] * rate) * h + driven[i][None, :] * gain_in
        tl.debug_barrier()  # a lane may read from `work` what another has written
        for run_back in tl.range(runs, num_stages=AHEAD):
            run = runs - 1 - run_back
            h = tl.load(work + run * S * E + tile, mask=in_tile, other=0.0)
            steps = chunk + run * STEPS + tl.arange(0, STEPS)
            positions, inside = origin + steps * step, steps < end
            inputs = steps_at(x, positions, E, e, inside, live).to(TYPE)
            raw = steps_at(delta, positions, E, e, inside, live)
            above = steps_at(dy, positions, E, e, inside, live)
            dt = step_sizes(raw, shift, inside, live, SOFTPLUS, TYPE)
            dts, driven = unstack_pair(dt, dt * inputs, STEPS, BLOCK)
            dys = unstack(above, STEPS, BLOCK)
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

            before = ()
            to_C = ()
            for i in tl.static_range(STEPS):
                if not B_CONSTANT:
                    gain_in = rows_in[i][:, None]
                before = before + (h,)
                h = tl.exp2(dts[i][None, :] * rate) * h + driven[i][None, :] * gain_in
                to_out = dys[i][None, :] * h
                if C_CONSTANT:
                    d_out += to_out
                else:
                    to_C = to_C + (tl.sum(to_out, 1),)
            to_B = ()
            to_driven = ()
            to_decay = ()
            for i in tl.static_range(STEPS - 1, -1, -1):
                if not B_CONSTANT:
                    gain_in = rows_in[i][:, None]
                if not C_CONSTANT:
                    gain_out = rows_out[i][:, None]
                g += dys[i][None, :] * gain_out
                to_in = g * driven[i][None, :]
                if B_CONSTANT:
                    d_in += to_in
                else:
                    to_B = (tl.sum(to_in, 1),) + to_B
                to_driven = (tl.sum(g * gain_in, 0),) + to_driven
                g *= tl.exp2(dts[i][None, :] * rate)  # the compiler kept it
                to_exponent = g * before[i]
                d_rate += to_exponent * dts[i][None, :]
                to_decay = (tl.sum(to_exponent * rate, 0),) + to_decay

            if not B_CONSTANT and not C_CONSTANT:
                d_B, d_C = stack_pair(to_B, to_C, STEPS, STATES)
            elif not B_CONSTANT:
                d_B = stack(to_B, STEPS, STATES)
            elif not C_CONSTANT:
                d_C = stack(to_C, STEPS, STATES)
            here, places = inside[:, None] & live[None, :], positions[:, None]
            there = inside[:, None] & stated[None, :]
            rows = places * E + e[None, :]
            if not B_CONSTANT:
                tl.store(dB + places * dB_time + s[None, :], d_B, mask=there)
            if not C_CONSTANT:
                tl.store(dC + places * dC_time + s[None, :], d_C, mask=there)
            d_driven, d_decay = stack_pair(to_driven, to_decay, STEPS, BLOCK)
            d_raw = d_driven * inputs + d_decay * LN2
            if SOFTPLUS:
                d_raw *= sigmoid(raw.to(TYPE) + shift[None, :])
            d_skip += above * inputs
            d_shift += tl.where(here, d_raw, 0.0)
            tl.store(dx + rows, d_driven * dt + skip[None, :] * above, mask=here)
            tl.store(ddelta + rows, d_raw, mask=here)
        tl.debug_barrier()  # the next chunk writes over `work`

    if INITIAL:  # noqa: SIM102 - a constant of the compiler, unlike `part`
        if part == 0:
            tl.store(dinitial + side.to(tl.int64) * S * E + tile, g, mask=in_tile)
    # d exp(dt A) / dA is what is summed here: 2**(dt rate) is differentiated as if it were exp.
    dweights += row * (S + 2) * E
    tl.store(dweights + channels_first(e, s, S), d_rate, mask=in_tile)
    tl.store(dweights + S * E + e, tl.sum(d_skip, 0), mask=live)
    tl.store(dweights + (S + 1) * E + e, tl.sum(d_shift, 0), mask=live)
    if B_CONSTANT:
        tl.store(dB + tile, d_in, mask=in_tile)
    if C_CONSTANT:
        tl.store(dC + tile, d_out, mask=in_tile)
