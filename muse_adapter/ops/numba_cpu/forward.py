"""The forward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.blocks import (
    gain,
    gains,
    kernel,
    load_part,
    load_rates,
    next_job,
    softplus_and_slope,
    store_part,
)
from muse_adapter.ops.numba_cpu.simd import WIDTH, advance, exp2, load, pointer, splat, store


def forward_work(states: int) -> int:
    """How many numbers of working memory a thread needs."""
    return (4 * states + 1) * WIDTH


@kernel
def forward(
    counter: int,
    work: int,
    unit: float,
    plan: Any,
    sizes: Any,
    flags: Any,
    x_view: Any,
    delta_view: Any,
    b_view: Any,
    c_view: Any,
    weights: Any,
    outputs: Any,
) -> None:
    """Run the jobs that are left: outputs, last states, and the states that the way back starts from.

    Args:
        counter: address of the number of the next job.
        work: address of `forward_work` numbers of this thread's own.
        unit: 1 in the type of the state.
        plan: addresses of the jobs (first block, last block + 1, part of dB, part of dC) and of the
            blocks (first channel, channels), then how many of each a video has.
        sizes: batch, L, E, S, chunk.
        flags: softplus, reverse.
        x_view, delta_view: address and strides of batch and time.
        b_view, c_view: address, strides of batch, time and group, channels in a group, and 1 if a
            block has channels of several groups.
        weights: addresses of A (E, S), D (E,), bias (E,), and of the lengths (batch,), int64.
        outputs: addresses of y (batch, L, E), last (batch, E, S), and the states before each chunk
            (batch, blocks, chunks, S, WIDTH), or 0 where these are not wanted.
    """
    batch, length, channels, states, chunk = sizes
    softplus, reverse = flags
    jobs, blocks = pointer(plan[0], 1), pointer(plan[1], 1)
    x, delta = pointer(x_view[0], unit), pointer(delta_view[0], unit)
    b, c = pointer(b_view[0], unit), pointer(c_view[0], unit)
    A, D, bias = pointer(weights[0], unit), pointer(weights[1], unit), pointer(weights[2], unit)
    lengths = pointer(weights[3], 1)
    y, last = pointer(outputs[0], unit), pointer(outputs[1], unit)
    kept = pointer(outputs[2], unit)
    chunks = (length + chunk - 1) // chunk
    size = states * WIDTH
    zero = splat(unit) * 0.0
    h = pointer(work, unit)
    rates, own_b, own_c = advance(h, size), advance(h, 2 * size), advance(h, 3 * size)
    scratch = advance(h, 4 * size)

    while True:
        job = next_job(counter)
        if job >= batch * plan[2]:
            return
        video, job = job // plan[2], job % plan[2] * 4
        valid = lengths[video]
        start, step = (valid - 1, -1) if reverse else (0, 1)
        for block in range(jobs[job], jobs[job + 1]):
            channel, lanes = blocks[2 * block], blocks[2 * block + 1]
            load_rates(A, rates, channel, lanes, states)
            skip = load_part(D, channel, lanes, scratch)
            shift = load_part(bias, channel, lanes, scratch)
            for s in range(states):
                store(h, s * WIDTH, zero)
            for t in range(valid):
                position = start + t * step
                if outputs[2] and t % chunk == 0:
                    at = ((video * plan[3] + block) * chunks + t // chunk) * size
                    for s in range(states):
                        store(kept, at + s * WIDTH, load(h, s * WIDTH))
                at = video * x_view[1] + position * x_view[2] + channel
                inputs = load_part(x, at, lanes, scratch)
                at = video * delta_view[1] + position * delta_view[2] + channel
                dt = load_part(delta, at, lanes, scratch) + shift
                if softplus:
                    dt, _ = softplus_and_slope(dt)
                row = video * b_view[1] + position * b_view[2]
                row_b = gains(b, row, b_view, channel, lanes, states, own_b)
                row = video * c_view[1] + position * c_view[2]
                row_c = gains(c, row, c_view, channel, lanes, states, own_c)
                driven = dt * inputs
                result = skip * inputs
                for s in range(states):
                    at = s * WIDTH
                    state = exp2(dt * load(rates, at)) * load(h, at)
                    state = state + driven * gain(b, row_b, b_view, own_b, s)
                    store(h, at, state)
                    result = result + state * gain(c, row_c, c_view, own_c, s)
                at = (video * length + position) * channels + channel
                store_part(y, at, result, lanes, scratch)
            for position in range(valid, length):
                at = (video * length + position) * channels + channel
                store_part(y, at, zero, lanes, scratch)
            for lane in range(lanes):
                at = (video * channels + channel + lane) * states
                for s in range(states):
                    last[at + s] = h[s * WIDTH + lane]
