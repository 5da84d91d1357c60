"""The forward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.blocks import gain, kernel, next_number
from muse_adapter.ops.numba_cpu.denormals import flush_denormals, restore_mode
from muse_adapter.ops.numba_cpu.elementary import exp2, softplus_and_slope
from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    advance,
    fetch,
    load,
    pointer,
    splat,
    store,
)

AHEAD = 8  # rows from the one that is computed to the one that is sent for


@kernel
def forward(
    counters: int,
    unit: float,
    sizes: Any,
    flags: Any,
    x_view: Any,
    delta_view: Any,
    b_view: Any,
    c_view: Any,
    weights: Any,
    outputs: Any,
    ending: Any,
) -> None:
    """Run the jobs that are left: outputs, last states, and the states for the backward pass.

    Args:
        counters: address of the number of the next job.
        unit: 1 in the type of the state.
        sizes: batch, L, blocks, S, steps in a chunk, blocks in a job.
        flags: softplus, reverse.
        x_view, delta_view: address and strides of batch and time.
        b_view, c_view: address, strides of batch, time, group and state, then blocks in a group,
            and 1 if every channel has its own values (a group is then a block, its channels lie
            beside each other).
        weights: addresses of the rates A log2(e) (blocks, S, WIDTH), of D (E,) and the bias (E,),
            and of the lengths (batch,), int64.
        outputs: addresses of y (batch, L, E), the last states (batch, blocks, S, WIDTH), and the
            states before each chunk (batch, blocks, chunks, S, WIDTH), or 0 to keep none.
        ending: what becomes of an output before it is written: 1 if what stands in y is added to
            it; then address and strides of batch and time of a gate z (or address 0), by whose
            SiLU it is multiplied.
    """
    batch, length, blocks, states, chunk, longest = sizes
    softplus, reverse = flags
    x, delta = pointer(x_view[0], unit), pointer(delta_view[0], unit)
    b, c = pointer(b_view[0], unit), pointer(c_view[0], unit)
    D, bias = pointer(weights[1], unit), pointer(weights[2], unit)
    lengths = pointer(weights[3], 1)
    y, z = pointer(outputs[0], unit), pointer(ending[1], unit)
    channels, chunks, size = blocks * WIDTH, (length + chunk - 1) // chunk, states * WIDTH
    zero = splat(unit) * 0.0

    mode = flush_denormals()
    while True:
        job = next_number(counters)
        video, first = job // (blocks // longest), job % (blocks // longest) * longest
        if video >= batch:
            restore_mode(mode)
            return
        valid = lengths[video]
        start, step = (valid - 1, -1) if reverse else (0, 1)
        for block in range(first, first + longest):
            channel = block * WIDTH
            rates = advance(pointer(weights[0], unit), block * size)
            h = advance(pointer(outputs[1], unit), (video * blocks + block) * size)
            kept = advance(pointer(outputs[2], unit), (video * blocks + block) * chunks * size)
            skip, shift = load(D, channel), load(bias, channel)
            to_x = video * x_view[1] + channel
            to_delta = video * delta_view[1] + channel
            to_b = video * b_view[1] + block // b_view[5] * b_view[3]
            to_c = video * c_view[1] + block // c_view[5] * c_view[3]
            to_y = video * length * channels + channel
            to_z = video * ending[2] + channel
            for s in range(states):
                store(h, s * WIDTH, zero)
            for begin in range(0, valid, chunk):
                if outputs[2]:
                    for s in range(states):
                        store(kept, begin // chunk * size + s * WIDTH, load(h, s * WIDTH))
                for t in range(begin, min(begin + chunk, valid)):
                    position = start + t * step
                    inputs = load(x, to_x + position * x_view[2])
                    dt = load(delta, to_delta + position * delta_view[2]) + shift
                    if softplus:
                        dt, _ = softplus_and_slope(dt)
                    row_b = to_b + position * b_view[2]
                    row_c = to_c + position * c_view[2]
                    driven = dt * inputs
                    result = skip * inputs
                    for s in range(states):
                        state = exp2(dt * load(rates, s * WIDTH)) * load(h, s * WIDTH)
                        state = state + driven * gain(b, row_b, b_view, s)
                        store(h, s * WIDTH, state)
                        result = result + state * gain(c, row_c, c_view, s)
                    if ending[0]:
                        result = result + load(y, to_y + position * channels)
                    if ending[1]:
                        gate = load(z, to_z + position * ending[3])
                        result = result * gate / (exp2(gate * -LOG2E) + 1.0)
                    store(y, to_y + position * channels, result)
                    later = position + AHEAD * step
                    fetch(x, to_x + later * x_view[2])
                    fetch(delta, to_delta + later * delta_view[2])
                    fetch(y, to_y + later * channels)
            for position in range(valid, length):
                store(y, to_y + position * channels, zero)
