"""The backward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.blocks import (
    add_lanes,
    gain,
    gains,
    kernel,
    load_part,
    load_rates,
    next_job,
    softplus_and_slope,
    store_part,
)
from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    advance,
    exp2,
    load,
    pointer,
    splat,
    store,
)

LN2 = 1.0 / LOG2E


def backward_work(states: int, chunk: int, blocks: int) -> int:
    """How many numbers of working memory a thread needs, with at most `blocks` in a job."""
    size = states * WIDTH
    own = (4 * chunk + 3) * size + (2 * chunk + 1) * WIDTH
    return own + blocks * (3 * size + 2 * WIDTH)


@kernel
def backward(
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
    dy_view: Any,
    saved: Any,
    outputs: Any,
    db_view: Any,
    dc_view: Any,
) -> None:
    """Run the jobs that are left: all gradients, chunk by chunk, from the last step to the first.

    The states inside a chunk are computed anew from the one before it.

    Args:
        work: address of `backward_work` numbers of this thread's own.
        dy_view: the gradient of y (batch, L, E), like x_view.
        saved: addresses of the states before each chunk and of the gradient of the last state
            (batch, E, S), or 0 for none.
        outputs: addresses of dx and ddelta (batch, L, E), dA (batch, E, S), dD and dbias (batch, E).
        db_view, dc_view: zeros to add to: address, strides of part, batch, time and group.
        counter, unit, plan, sizes, flags, x_view, delta_view, b_view, c_view, weights: as forward.
    """
    batch, length, channels, states, chunk = sizes
    softplus, reverse = flags
    jobs, blocks = pointer(plan[0], 1), pointer(plan[1], 1)
    x, delta = pointer(x_view[0], unit), pointer(delta_view[0], unit)
    b, c = pointer(b_view[0], unit), pointer(c_view[0], unit)
    A, D, bias = pointer(weights[0], unit), pointer(weights[1], unit), pointer(weights[2], unit)
    lengths = pointer(weights[3], 1)
    dy, kept, dlast = pointer(dy_view[0], unit), pointer(saved[0], unit), pointer(saved[1], unit)
    dx, ddelta = pointer(outputs[0], unit), pointer(outputs[1], unit)
    dA, dD, dbias = pointer(outputs[2], unit), pointer(outputs[3], unit), pointer(outputs[4], unit)
    db, dc = pointer(db_view[0], unit), pointer(dc_view[0], unit)
    chunks = (length + chunk - 1) // chunk
    size = states * WIDTH
    zero = splat(unit) * 0.0
    # What is kept for one chunk; h[0] is the state before it.
    h = pointer(work, unit)
    decays = advance(h, (chunk + 1) * size)
    lanes_db = advance(decays, chunk * size)
    lanes_dc = advance(lanes_db, chunk * size)
    own_b = advance(lanes_dc, chunk * size)
    own_c = advance(own_b, size)
    steps = advance(own_c, size)
    slopes = advance(steps, chunk * WIDTH)
    scratch = advance(slopes, chunk * WIDTH)
    # What each block of the job carries from chunk to chunk: rates, dh, dA, dD, dbias.
    carried = advance(scratch, WIDTH)
    stride = 3 * size + 2 * WIDTH

    while True:
        job = next_job(counter)
        if job >= batch * plan[2]:
            return
        video, job = job // plan[2], job % plan[2] * 4
        valid = lengths[video]
        start, step = (valid - 1, -1) if reverse else (0, 1)
        first, end = jobs[job], jobs[job + 1]
        for block in range(first, end):
            channel, lanes = blocks[2 * block], blocks[2 * block + 1]
            rates = advance(carried, (block - first) * stride)
            dh, sums = advance(rates, size), advance(rates, 2 * size)
            load_rates(A, rates, channel, lanes, states)
            for i in range(2 * states + 2):
                store(dh, i * WIDTH, zero)
            if saved[1]:
                for lane in range(lanes):
                    at = (video * channels + channel + lane) * states
                    for s in range(states):
                        dh[s * WIDTH + lane] = dlast[at + s]

        for number in range((valid + chunk - 1) // chunk - 1, -1, -1):
            begin = number * chunk
            count = min(chunk, valid - begin)
            for block in range(first, end):
                channel, lanes = blocks[2 * block], blocks[2 * block + 1]
                rates = advance(carried, (block - first) * stride)
                dh, sums = advance(rates, size), advance(rates, 2 * size)
                skip = load_part(D, channel, lanes, scratch)
                shift = load_part(bias, channel, lanes, scratch)

                at = ((video * plan[3] + block) * chunks + number) * size
                for s in range(states):
                    store(h, s * WIDTH, load(kept, at + s * WIDTH))
                for t in range(count):
                    position = start + (begin + t) * step
                    at = video * x_view[1] + position * x_view[2] + channel
                    inputs = load_part(x, at, lanes, scratch)
                    at = video * delta_view[1] + position * delta_view[2] + channel
                    dt = load_part(delta, at, lanes, scratch) + shift
                    slope = splat(unit)
                    if softplus:
                        dt, slope = softplus_and_slope(dt)
                    store(steps, t * WIDTH, dt)
                    store(slopes, t * WIDTH, slope)
                    row = video * b_view[1] + position * b_view[2]
                    row_b = gains(b, row, b_view, channel, lanes, states, own_b)
                    driven = dt * inputs
                    for s in range(states):
                        now = t * size + s * WIDTH
                        decay = exp2(dt * load(rates, s * WIDTH))
                        store(decays, now, decay)
                        state = decay * load(h, now)
                        state = state + driven * gain(b, row_b, b_view, own_b, s)
                        store(h, now + size, state)

                sum_d, sum_bias = load(sums, size), load(sums, size + WIDTH)
                for t in range(count - 1, -1, -1):
                    position = start + (begin + t) * step
                    at = video * x_view[1] + position * x_view[2] + channel
                    inputs = load_part(x, at, lanes, scratch)
                    at = video * dy_view[1] + position * dy_view[2] + channel
                    above = load_part(dy, at, lanes, scratch)
                    row = video * b_view[1] + position * b_view[2]
                    row_b = gains(b, row, b_view, channel, lanes, states, own_b)
                    row = video * c_view[1] + position * c_view[2]
                    row_c = gains(c, row, c_view, channel, lanes, states, own_c)
                    dt = load(steps, t * WIDTH)
                    driven = dt * inputs
                    d_driven = zero
                    d_exponent = zero
                    for s in range(states):
                        at = s * WIDTH
                        now = t * size + at
                        d_state = load(dh, at) + above * gain(c, row_c, c_view, own_c, s)
                        d_driven = d_driven + d_state * gain(b, row_b, b_view, own_b, s)
                        to_b, to_c = d_state * driven, above * load(h, now + size)
                        if block != first:
                            to_b = to_b + load(lanes_db, now)
                            to_c = to_c + load(lanes_dc, now)
                        store(lanes_db, now, to_b)
                        store(lanes_dc, now, to_c)
                        d_state = d_state * load(decays, now)
                        store(dh, at, d_state)
                        d_rate = d_state * load(h, now)
                        d_exponent = d_exponent + d_rate * load(rates, at)
                        store(sums, at, load(sums, at) + d_rate * dt)
                    d_step = d_driven * inputs + d_exponent * LN2
                    d_step = d_step * load(slopes, t * WIDTH)
                    sum_d = sum_d + above * inputs
                    sum_bias = sum_bias + d_step
                    at = (video * length + position) * channels + channel
                    store_part(ddelta, at, d_step, lanes, scratch)
                    store_part(dx, at, d_driven * dt + skip * above, lanes, scratch)
                store(sums, size, sum_d)
                store(sums, size + WIDTH, sum_bias)

            channel, lanes = blocks[2 * first], blocks[2 * first + 1]
            for t in range(count):
                position = start + (begin + t) * step
                source = advance(lanes_db, t * size)
                row = jobs[job + 2] * db_view[1] + video * db_view[2] + position * db_view[3]
                add_lanes(source, db, row, db_view[4], b_view, channel, lanes, states)
                source = advance(lanes_dc, t * size)
                row = jobs[job + 3] * dc_view[1] + video * dc_view[2] + position * dc_view[3]
                add_lanes(source, dc, row, dc_view[4], c_view, channel, lanes, states)

        for block in range(first, end):
            channel, lanes = blocks[2 * block], blocks[2 * block + 1]
            sums = advance(carried, (block - first) * stride + 2 * size)
            for position in range(valid, length):
                at = (video * length + position) * channels + channel
                store_part(dx, at, zero, lanes, scratch)
                store_part(ddelta, at, zero, lanes, scratch)
            for lane in range(lanes):
                at = video * channels + channel + lane
                for s in range(states):
                    dA[at * states + s] = sums[s * WIDTH + lane]
                dD[at] = sums[size + lane]
                dbias[at] = sums[size + WIDTH + lane]
