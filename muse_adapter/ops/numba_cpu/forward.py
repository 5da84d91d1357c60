"""The forward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.blocks import (
    bc_rows,
    load_bc,
    load_row,
    load_steps,
    rows_of,
    store_row,
)
from muse_adapter.ops.numba_cpu.denormals import flush_denormals, restore_mode
from muse_adapter.ops.numba_cpu.elementary import exp2
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    advance,
    inline,
    load,
    pointer,
    splat,
    store,
)


@inline
def work_size(chunk: int) -> int:
    """Return how many numbers of working memory `forward` needs for each thread."""
    return 3 * chunk * WIDTH


@inline
def scan_chunk(
    work: Any,
    a_log2e: Any,
    h: Any,
    b: Any,
    c: Any,
    own: Any,
    sizes: Any,
) -> None:
    """Scan a chunk of a block, state after state.

    Args:
        work: dt, dt x and y of every step; y is added to.
        a_log2e: A log2(e), (S, WIDTH).
        h: the states before the chunk, which become those after it.
        b, c: rows of B and C.
        own: whether every channel has its own values of B, and of C.
        sizes: states, steps.
    """
    dts, dt_x, y = work
    states, count = sizes
    for s in range(states):
        a, state = load(a_log2e, s * WIDTH), load(h, s * WIDTH)
        for t in range(count):
            decay = exp2(load(dts, t * WIDTH) * a)
            state = decay * state + load(dt_x, t * WIDTH) * load_bc(b, own[0], t, s)
            store(y, t * WIDTH, load(y, t * WIDTH) + state * load_bc(c, own[1], t, s))
        store(h, s * WIDTH, state)


_unpack = unpacker(6, 2, 3, 3, 7, 7, 4, 4, 2, 3)


@Kernel
def forward(memory: Any) -> None:
    """Run the jobs that are left: outputs, last states, and the states for the backward pass.

    Arguments in the memory:
        sizes: batch, L, blocks, S, steps in a chunk, blocks in a job.
        flags: softplus, reverse.
        x_view, delta_view: address and strides of batch and time.
        b_view, c_view: address, strides of batch, time, group and state, then blocks in a group,
            and 1 if every channel has its own values (a group is then a block, and its channels are
            contiguous).
        weights: addresses of A log2(e) (blocks, S, WIDTH), of D (E,) and the bias (E,), and of the
            lengths (batch,), int64.
        outputs: addresses of y (batch, L, E), the states (batch, blocks, S, WIDTH), which become
            the last ones, and the states before each chunk (batch, blocks, chunks, S, WIDTH), or 0
            to save none; and of `work_size` numbers for each thread.
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
    batch, length, blocks, states, chunk, blocks_per_job = sizes
    softplus, reverse = flags
    goes_on, added = joined
    shared = not (b_view[6] or c_view[6])
    lengths = pointer(weights[3], 1)
    y_view = outputs[0], length * blocks * WIDTH, blocks * WIDTH
    chunks, size = (length + chunk - 1) // chunk, states * WIDTH
    zero = splat(unit) * 0.0
    dts = advance(pointer(outputs[3], unit), place * work_size(chunk))
    dt_x = advance(dts, chunk * WIDTH)
    results = advance(dt_x, chunk * WIDTH)

    mode = flush_denormals()
    while True:
        job = next_number(counters) * blocks_per_job
        video, first = job // blocks, job % blocks
        if video >= batch:
            restore_mode(mode)
            return
        valid = lengths[video]
        start, step = (valid - 1, -1) if reverse else (0, 1)
        last = first + blocks_per_job - 1
        if not goes_on:
            h = advance(pointer(outputs[1], unit), job * size)
            for s in range(blocks_per_job * states):
                store(h, s * WIDTH, zero)
        for begin in range(0, valid, chunk):
            count, position = min(chunk, valid - begin), start + begin * step
            for block in range(first, last + 1):
                at = video * blocks + block
                where = video, block, position, step
                a_log2e = advance(pointer(weights[0], unit), block * size)
                h = advance(pointer(outputs[1], unit), at * size)
                D = load(pointer(weights[1], unit), block * WIDTH)
                bias = load(pointer(weights[2], unit), block * WIDTH)
                x = rows_of(pointer(x_view[0], unit), x_view, *where)
                delta = rows_of(pointer(delta_view[0], unit), delta_view, *where)
                y = rows_of(pointer(outputs[0], unit), y_view, *where)
                z = rows_of(pointer(gate_view[0], unit), gate_view, *where)
                b = bc_rows(pointer(b_view[0], unit), b_view, *where)
                c = bc_rows(pointer(c_view[0], unit), c_view, *where)

                if outputs[2]:
                    saved = advance(
                        pointer(outputs[2], unit), (at * chunks + begin // chunk) * size
                    )
                    for s in range(states):
                        store(saved, s * WIDTH, load(h, s * WIDTH))
                load_steps(x, delta, bias, softplus, count, (dts, dt_x), None)
                for t in range(count):
                    store(results, t * WIDTH, D * load_row(x, t))
                work, spans = (dts, dt_x, results), (states, count)
                # Constants in the usual case: a tenth of the scan's time.
                if shared:
                    scan_chunk(work, a_log2e, h, b, c, (False, False), spans)
                else:
                    scan_chunk(work, a_log2e, h, b, c, (b_view[6] != 0, c_view[6] != 0), spans)
                for t in range(count):
                    result = load(results, t * WIDTH)
                    if added:  # last: the sum of two scans does not depend on which came first
                        result = result + load_row(y, t)
                    if gate_view[0]:
                        gate = load_row(z, t)
                        result = result * gate / (exp2(gate * -LOG2E) + 1.0)
                    store_row(y, t, result)
        for block in range(first, last + 1):
            y = rows_of(pointer(outputs[0], unit), y_view, video, block, 0, 1)
            for position in range(valid, length):
                store_row(y, position, zero)
