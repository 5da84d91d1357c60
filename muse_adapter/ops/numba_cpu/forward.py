"""The forward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.blocks import gain
from muse_adapter.ops.numba_cpu.denormals import flush_denormals, restore_mode
from muse_adapter.ops.numba_cpu.elementary import CALM, exp2, exp2_product, softplus_and_slope
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.registers import (
    in_registers,
    load_states,
    step_in_registers,
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


@inline
def take_step(
    calm: bool, dt: Any, driven: Any, result: Any, states: int, rates: Any, h: Any, gains: Any
) -> Any:
    """Bring all states of a block one step further, and add what they give to `result`.

    Args:
        calm: whether no exponent is beyond `CALM`.
        gains: B and C, each with where its row begins, and its view.
    """
    b, row_b, b_view, c, row_c, c_view = gains
    for s in range(states):
        rate = load(rates, s * WIDTH)
        decay = exp2_product(dt, rate) if calm else exp2(dt * rate)
        state = decay * load(h, s * WIDTH) + driven * gain(b, row_b, b_view, s)
        store(h, s * WIDTH, state)
        result = result + state * gain(c, row_c, c_view, s)
    return result


@inline
def finish(result: Any, position: int, later: int, aside: int, added: int, rows: Any) -> None:
    """Write an output, and send for the rows of a later step.

    Args:
        result: the output; what stands in y is added to it if `added`, then SiLU(z) multiplies it.
        position: of the output.
        later, aside: position of the rows to send for, and how far from the block they stand.
        rows: x, delta, y and z, each with where the block's begin and the stride of time; 0 if
            there is no z.
    """
    x, to_x, by_x, delta, to_delta, by_delta, y, to_y, by_y, z, to_z, by_z, gated = rows
    if added:
        result = result + load(y, to_y + position * by_y)
    if gated:
        gate = load(z, to_z + position * by_z)
        result = result * gate / (exp2(gate * -LOG2E) + 1.0)
        fetch(z, to_z + aside + later * by_z)
    store(y, to_y + position * by_y, result)
    fetch(x, to_x + aside + later * by_x)
    fetch(delta, to_delta + aside + later * by_delta)
    fetch(y, to_y + aside + later * by_y)


_unpack = unpacker(6, 2, 3, 3, 7, 7, 4, 4, 2, 3)


@Kernel
def forward(memory: Any) -> None:
    """Run the jobs that are left: outputs, last states, and the states for the backward pass.

    Arguments in the memory:
        sizes: batch, L, blocks, S, steps in a chunk, blocks in a job.
        flags: softplus, reverse.
        x_view, delta_view: address and strides of batch and time.
        b_view, c_view: address, strides of batch, time, group and state, then blocks in a group,
            and 1 if every channel has its own values (a group is then a block, its channels lie
            beside each other).
        weights: addresses of the rates A log2(e) (blocks, S, WIDTH), of D (E,) and the bias (E,),
            and of the lengths (batch,), int64.
        outputs: addresses of y (batch, L, E), the states (batch, blocks, S, WIDTH), which become
            the last ones, and the states before each chunk (batch, blocks, chunks, S, WIDTH), or 0
            to keep none; and of a chunk of vectors for each thread to work with.
        joined: 1 if the scan goes on from the states as they stand, 0 if from zero; 1 if what
            stands in y is added to an output.
        gate_view: address and strides of batch and time of a gate z, by whose SiLU an output is
            multiplied; address 0 for none.
    """
    (
        unit, counters, threads, sizes, flags, x_view, delta_view, b_view, c_view, weights, outputs,
        joined, gate_view,
    ) = _unpack(memory)  # fmt: skip
    place = next_number(counters + 8)
    if place >= threads:
        return
    batch, length, blocks, states, chunk, longest = sizes
    softplus, reverse = flags
    goes_on, added = joined
    shared = not (b_view[6] or c_view[6])
    x, delta = pointer(x_view[0], unit), pointer(delta_view[0], unit)
    b, c = pointer(b_view[0], unit), pointer(c_view[0], unit)
    D, bias = pointer(weights[1], unit), pointer(weights[2], unit)
    lengths = pointer(weights[3], 1)
    y, z = pointer(outputs[0], unit), pointer(gate_view[0], unit)
    channels, chunks, size = blocks * WIDTH, (length + chunk - 1) // chunk, states * WIDTH
    zero = splat(unit) * 0.0

    steps = advance(pointer(outputs[3], unit), place * chunk * WIDTH)
    mode = flush_denormals()
    while True:
        job = next_number(counters)
        video, first = job // (blocks // longest), job % (blocks // longest) * longest
        if video >= batch:
            restore_mode(mode)
            return
        valid = lengths[video]
        start, step = (valid - 1, -1) if reverse else (0, 1)
        last = first + longest - 1
        if not goes_on:
            h = advance(pointer(outputs[1], unit), (video * blocks + first) * size)
            for s in range(longest * states):
                store(h, s * WIDTH, zero)
        for begin in range(0, valid, chunk):
            count = min(chunk, valid - begin)
            for block in range(first, last + 1):
                channel = block * WIDTH
                at = video * blocks + block
                rates = advance(pointer(weights[0], unit), block * size)
                h = advance(pointer(outputs[1], unit), at * size)
                skip, shift = load(D, channel), load(bias, channel)
                to_x = video * x_view[1] + channel
                to_delta = video * delta_view[1] + channel
                to_b = video * b_view[1] + block // b_view[5] * b_view[3]
                to_c = video * c_view[1] + block // c_view[5] * c_view[3]
                to_y = video * length * channels + channel
                to_z = video * gate_view[1] + channel

                if outputs[2]:
                    kept = advance(pointer(outputs[2], unit), (at * chunks + begin // chunk) * size)
                    for s in range(states):
                        store(kept, s * WIDTH, load(h, s * WIDTH))
                # With a step beyond the bound the whole chunk is rounded in another way.
                steepest, largest = zero, zero
                for s in range(states):
                    steepest = larger(magnitude(load(rates, s * WIDTH)), steepest)
                # All of a chunk first: one by one, the states would wait for each of them.
                for t in range(count):
                    position = start + (begin + t) * step
                    dt = load(delta, to_delta + position * delta_view[2]) + shift
                    if softplus:
                        dt, _ = softplus_and_slope(dt)
                    largest = larger(magnitude(dt), largest)
                    store(steps, t * WIDTH, dt)

                rows = (
                    *(x, to_x, x_view[2], delta, to_delta, delta_view[2]),
                    *(y, to_y, channels, z, to_z, gate_view[2], gate_view[0]),
                )
                # The rows to send for are the next block's, or those of the next chunk.
                aside, ahead = WIDTH, 0
                if block == last:
                    aside, ahead = (first - last) * WIDTH, chunk * step
                calm = not any_above(largest * steepest, CALM)
                if calm and shared and in_registers(states, unit):
                    held = load_states(h)
                    for t in range(count):
                        position = start + (begin + t) * step
                        dt = load(steps, t * WIDTH)
                        inputs = load(x, to_x + position * x_view[2])
                        result, held = step_in_registers(
                            *(dt, dt * inputs, skip * inputs, held, rates),
                            advance(b, to_b + position * b_view[2]),
                            advance(c, to_c + position * c_view[2]),
                        )
                        finish(result, position, position + ahead, aside, added, rows)
                    store_states(h, held)
                else:
                    for t in range(count):
                        position = start + (begin + t) * step
                        dt = load(steps, t * WIDTH)
                        inputs = load(x, to_x + position * x_view[2])
                        gains = (
                            *(b, to_b + position * b_view[2], b_view),
                            *(c, to_c + position * c_view[2], c_view),
                        )
                        driven, result = dt * inputs, skip * inputs
                        if calm:
                            result = take_step(True, dt, driven, result, states, rates, h, gains)
                        else:
                            result = take_step(False, dt, driven, result, states, rates, h, gains)
                        finish(result, position, position + ahead, aside, added, rows)
        for block in range(first, last + 1):
            to_y = video * length * channels + block * WIDTH
            for position in range(valid, length):
                store(y, to_y + position * channels, zero)
