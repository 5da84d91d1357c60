"""The backward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.blocks import add_gains, clear_gains, gain, gain_row
from muse_adapter.ops.numba_cpu.denormals import flush_denormals, restore_mode, settle
from muse_adapter.ops.numba_cpu.elementary import CALM, exp2, exp2_product, softplus_and_slope
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.registers import (
    in_registers,
    load_states,
    retake_in_registers,
    step_back_in_registers,
    store_states,
)
from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    advance,
    any_above,
    fetch,
    inline,
    larger,
    load,
    magnitude,
    pointer,
    splat,
    store,
)

LN2 = 1.0 / LOG2E


@inline
def work_size(states: int, chunk: int) -> int:
    """How many numbers of working memory `backward` needs for each thread."""
    return ((4 * chunk + 1) * states + 2 * chunk + 2 * WIDTH) * WIDTH


@inline
def retake_step(
    calm: bool, dt: Any, driven: Any, states: int, rates: Any, work: Any, gains: Any
) -> None:
    """Bring all states of a block one step further, and keep the decays.

    Args:
        calm: whether no exponent is beyond `CALM`.
        work: the states before the step, before those after it; the decays.
        gains: B, where its row begins, its view.
    """
    h, decays = work
    b, row_b, b_view = gains
    for s in range(states):
        rate = load(rates, s * WIDTH)
        decay = exp2_product(dt, rate) if calm else exp2(dt * rate)
        store(decays, s * WIDTH, decay)
        state = decay * load(h, s * WIDTH) + driven * gain(b, row_b, b_view, s)
        store(h, (states + s) * WIDTH, state)


_unpack = unpacker(6, 2, 3, 3, 7, 7, 4, 3, 2, 6, 6, 6)


@Kernel
def backward(memory: Any) -> None:
    """Run the jobs that are left: all gradients, chunk by chunk, from the last step to the first.

    The states inside a chunk are computed anew from the one before it.

    Arguments in the memory:
        dy_view: the gradient of y (batch, L, E), like x_view.
        given: addresses of the states before each chunk, and of `work_size` numbers for each
            thread.
        outputs: addresses of dx and ddelta (batch, L, E), drates (batch, blocks, S, WIDTH), dD and
            dbias (batch, E), and dstate (batch, blocks, S, WIDTH), which holds the gradient of the
            last state.
        db_view, dc_view: the gradients of B and C, with a part for each job of a group: address,
            strides of part, batch, time, group and state.
        sizes, flags, x_view, delta_view, b_view, c_view, weights: as in `forward`.
    """
    (
        unit, counters, threads, sizes, flags, x_view, delta_view, b_view, c_view, weights, dy_view,
        given, outputs, db_view, dc_view,
    ) = _unpack(memory)  # fmt: skip
    place = next_number(counters + 8)
    if place >= threads:
        return
    batch, length, blocks, states, chunk, longest = sizes
    softplus, reverse = flags
    x, delta = pointer(x_view[0], unit), pointer(delta_view[0], unit)
    b, c = pointer(b_view[0], unit), pointer(c_view[0], unit)
    D, bias = pointer(weights[1], unit), pointer(weights[2], unit)
    lengths = pointer(weights[3], 1)
    dy, dx, ddelta = pointer(dy_view[0], unit), pointer(outputs[0], unit), pointer(outputs[1], unit)
    dD, dbias = pointer(outputs[3], unit), pointer(outputs[4], unit)
    db, dc = pointer(db_view[0], unit), pointer(dc_view[0], unit)
    shared = not (b_view[6] or c_view[6])
    channels, chunks, size = blocks * WIDTH, (length + chunk - 1) // chunk, states * WIDTH
    zero = splat(unit) * 0.0
    # What a thread holds of a chunk; h[0] is the state before it.
    h = advance(pointer(given[1], unit), place * work_size(states, chunk))
    decays = advance(h, (chunk + 1) * size)
    lanes_db = advance(decays, chunk * size)
    lanes_dc = advance(lanes_db, chunk * size + WIDTH * WIDTH)
    steps = advance(lanes_dc, chunk * size + WIDTH * WIDTH)
    slopes = advance(steps, chunk * WIDTH)

    mode = flush_denormals()
    while True:
        number = next_number(counters)
        video, first = number // (blocks // longest), number % (blocks // longest) * longest
        if video >= batch:
            restore_mode(mode)
            return
        valid = lengths[video]
        start, step = (valid - 1, -1) if reverse else (0, 1)
        to_db = gain_row(db_view, b_view, video, first, longest)
        to_dc = gain_row(dc_view, c_view, video, first, longest)
        clear_gains(db, to_db, db_view, b_view[6], length, states, zero)
        clear_gains(dc, to_dc, dc_view, c_view[6], length, states, zero)
        for block in range(first, first + longest):
            at = video * blocks + block
            store(dD, at * WIDTH, zero)
            store(dbias, at * WIDTH, zero)
            for s in range(states):
                store(pointer(outputs[2], unit), at * size + s * WIDTH, zero)
        for part in range((valid + chunk - 1) // chunk - 1, -1, -1):
            begin = part * chunk
            count = min(chunk, valid - begin)
            for block in range(first, first + longest):
                at = video * blocks + block
                channel = block * WIDTH
                rates = advance(pointer(weights[0], unit), block * size)
                kept = advance(pointer(given[0], unit), (at * chunks + part) * size)
                drates = advance(pointer(outputs[2], unit), at * size)
                dstate = advance(pointer(outputs[5], unit), at * size)
                skip, shift = load(D, channel), load(bias, channel)
                to_x = video * x_view[1] + channel
                to_delta = video * delta_view[1] + channel
                to_dy = video * dy_view[1] + channel
                to_dx = video * length * channels + channel
                to_b = video * b_view[1] + block // b_view[5] * b_view[3]
                to_c = video * c_view[1] + block // c_view[5] * c_view[3]

                steepest, largest = zero, zero
                for s in range(states):
                    store(h, s * WIDTH, load(kept, s * WIDTH))
                    steepest = larger(magnitude(load(rates, s * WIDTH)), steepest)
                for t in range(count):
                    position = start + (begin + t) * step
                    dt = load(delta, to_delta + position * delta_view[2]) + shift
                    slope = splat(unit)
                    if softplus:
                        dt, slope = softplus_and_slope(dt)
                    largest = larger(magnitude(dt), largest)
                    store(steps, t * WIDTH, dt)
                    store(slopes, t * WIDTH, slope)
                calm = not any_above(largest * steepest, CALM)
                held = calm and shared and in_registers(states, unit)

                if held:
                    values = load_states(h)
                    for t in range(count):
                        position = start + (begin + t) * step
                        dt = load(steps, t * WIDTH)
                        driven = dt * load(x, to_x + position * x_view[2])
                        values = retake_in_registers(
                            *(dt, driven, values, rates),
                            advance(b, to_b + position * b_view[2]),
                            advance(h, (t + 1) * size),
                            advance(decays, t * size),
                        )
                        fetch(dy, to_dy + position * dy_view[2])
                        fetch(dx, to_dx + position * channels)
                        fetch(ddelta, to_dx + position * channels)
                else:
                    for t in range(count):
                        position = start + (begin + t) * step
                        dt = load(steps, t * WIDTH)
                        driven = dt * load(x, to_x + position * x_view[2])
                        work = advance(h, t * size), advance(decays, t * size)
                        gains = b, to_b + position * b_view[2], b_view
                        fetch(dy, to_dy + position * dy_view[2])
                        fetch(dx, to_dx + position * channels)
                        fetch(ddelta, to_dx + position * channels)
                        if calm:
                            retake_step(True, dt, driven, states, rates, work, gains)
                        else:
                            retake_step(False, dt, driven, states, rates, work, gains)

                # The rows to send for are the next block's, or those of the chunk before this one.
                aside, back = (WIDTH, 0) if block - first < longest - 1 else (0, -chunk * step)
                sum_d, sum_bias = load(dD, at * WIDTH), load(dbias, at * WIDTH)
                if held:
                    values = load_states(dstate)
                for t in range(count - 1, -1, -1):
                    position = start + (begin + t) * step
                    inputs = load(x, to_x + position * x_view[2])
                    above = load(dy, to_dy + position * dy_view[2])
                    row_b = to_b + position * b_view[2]
                    row_c = to_c + position * c_view[2]
                    dt = load(steps, t * WIDTH)
                    driven = dt * inputs
                    if held:
                        d_driven, d_exponent, d_b, d_c, values = step_back_in_registers(
                            *(above, dt, driven, values, rates, drates),
                            *(advance(b, row_b), advance(c, row_c)),
                            *(advance(h, t * size), advance(decays, t * size)),
                        )
                        to = to_db + position * db_view[3]
                        store(db, to, load(db, to) + d_b)
                        to = to_dc + position * dc_view[3]
                        store(dc, to, load(dc, to) + d_c)
                    else:
                        d_driven, d_exponent = zero, zero
                        for s in range(states):
                            now = t * size + s * WIDTH
                            d_state = load(dstate, s * WIDTH) + above * gain(c, row_c, c_view, s)
                            d_driven = d_driven + d_state * gain(b, row_b, b_view, s)
                            store(lanes_db, now, d_state * driven)
                            store(lanes_dc, now, above * load(h, now + size))
                            d_state = d_state * load(decays, now)
                            store(dstate, s * WIDTH, d_state)
                            d_decay = d_state * load(h, now)
                            d_exponent = d_exponent + d_decay * load(rates, s * WIDTH)
                            store(drates, s * WIDTH, load(drates, s * WIDTH) + d_decay * dt)
                    d_step = d_driven * inputs + d_exponent * LN2
                    d_step = d_step * load(slopes, t * WIDTH)
                    sum_d = sum_d + above * inputs
                    sum_bias = sum_bias + d_step
                    store(ddelta, to_dx + position * channels, settle(d_step))
                    d_inputs = d_driven * dt + skip * above
                    store(dx, to_dx + position * channels, settle(d_inputs))
                    later = position + back
                    fetch(x, to_x + aside + later * x_view[2])
                    fetch(delta, to_delta + aside + later * delta_view[2])
                if held:
                    store_states(dstate, values)
                else:
                    span = (start + begin * step, step, count)
                    add_gains(lanes_db, db, to_db, db_view, b_view[6], span, states)
                    add_gains(lanes_dc, dc, to_dc, dc_view, c_view[6], span, states)
                store(dD, at * WIDTH, sum_d)
                store(dbias, at * WIDTH, sum_bias)
        for block in range(first, first + longest):
            at = video * length * channels + block * WIDTH
            for position in range(valid, length):
                store(dx, at + position * channels, zero)
                store(ddelta, at + position * channels, zero)
