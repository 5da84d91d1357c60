"""The backward kernel of the scan."""

from __future__ import annotations

from typing import Any

from muse_adapter.ops.numba_cpu.bc_gradients import (
    add_lanes,
    add_sums,
    clear_gradient,
    gradient_rows,
    sum_lanes,
)
from muse_adapter.ops.numba_cpu.blocks import (
    bc_rows,
    load_bc,
    load_row,
    load_steps,
    rows_of,
    store_row,
)
from muse_adapter.ops.numba_cpu.denormals import flush_denormals, flush_small, restore_mode
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

LN2 = 1.0 / LOG2E


@inline
def work_size(states: int, chunk: int) -> int:
    """Return how many numbers of working memory `backward` needs for each thread.

    Args:
        states: S.
        chunk: steps in a chunk, a multiple of WIDTH.
    """
    return (10 * chunk + 1) * WIDTH + 2 * states * chunk


@inline
def differentiate_chunk(
    steps: Any, work: Any, a_log2e: Any, saved: Any, gradients: Any, bc: Any,
    own: Any, sizes: Any,
) -> None:  # fmt: skip
    """Take the gradients a chunk of a block back in time, state after state.

    Args:
        steps: dt, dt x and dy of every step, and the gradients of dt x and of dt through the
            exponents, which are added to.
        work: room for the states before and after each step, the decays, and the products whose
            sums over the lanes are the gradients of B and C; then those sums, and whether they
            are added to.
        a_log2e: A log2(e), (S, WIDTH).
        saved: the states before the chunk.
        gradients: of the states after the chunk, which become those of the states before it, and of
            A log2(e), which is added to; both (S, WIDTH).
        bc: rows of B, of C, and of their gradients where every channel has its own.
        own: whether every channel has its own values of B, and of C.
        sizes: states, steps, steps of a whole chunk.
    """
    dts, dt_x, dys, d_dt_x, d_dt = steps
    h, decays, products_b, products_c, sums_b, sums_c, more = work
    b, c, db, dc = bc
    states, count, chunk = sizes
    for s in range(states):
        a, state = load(a_log2e, s * WIDTH), load(saved, s * WIDTH)
        store(h, 0, state)
        for t in range(count):
            decay = exp2(load(dts, t * WIDTH) * a)
            state = decay * state + load(dt_x, t * WIDTH) * load_bc(b, own[0], t, s)
            store(decays, t * WIDTH, decay)
            store(h, (t + 1) * WIDTH, state)

        d_state, d_a = load(gradients[0], s * WIDTH), a * 0.0
        for t in range(count - 1, -1, -1):
            at = t * WIDTH
            dy = load(dys, at)
            d_state = d_state + dy * load_bc(c, own[1], t, s)
            store(d_dt_x, at, load(d_dt_x, at) + d_state * load_bc(b, own[0], t, s))
            d_b, d_c = d_state * load(dt_x, at), dy * load(h, at + WIDTH)
            if own[0]:
                add_lanes(db, t, s, d_b)
            else:
                store(products_b, at, d_b)
            if own[1]:
                add_lanes(dc, t, s, d_c)
            else:
                store(products_c, at, d_c)
            d_state = d_state * load(decays, at)
            d_exponent = d_state * load(h, at)
            store(d_dt, at, load(d_dt, at) + d_exponent * a)
            d_a = d_a + d_exponent * load(dts, at)
        store(gradients[0], s * WIDTH, d_state)
        store(gradients[1], s * WIDTH, load(gradients[1], s * WIDTH) + d_a)
        if not own[0]:
            sum_lanes(products_b, advance(sums_b, s * chunk), count, more)
        if not own[1]:
            sum_lanes(products_c, advance(sums_c, s * chunk), count, more)


_unpack = unpacker(6, 2, 3, 3, 7, 7, 4, 3, 2, 6, 6, 6)


@Kernel
def backward(memory: Any) -> None:
    """Run the jobs that are left: all gradients, chunk by chunk, from the last step to the first.

    The states inside a chunk are computed again from the one before it.

    Arguments in the memory:
        dy_view: the gradient of y (batch, L, E), like x_view.
        given: addresses of the states before each chunk, and of `work_size` numbers for each
            thread.
        outputs: addresses of dx and ddelta (batch, L, E), of the gradient of A log2(e) (batch,
            blocks, S, WIDTH), as if its power were of e, of dD and dbias (batch, E), and of dstate
            (batch, blocks, S, WIDTH), which holds the gradient of the last state.
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
    batch, length, blocks, states, chunk, blocks_per_job = sizes
    softplus, reverse = flags
    shared = not (b_view[6] or c_view[6])
    lengths = pointer(weights[3], 1)
    dx_view = outputs[0], length * blocks * WIDTH, blocks * WIDTH
    dA, dstate = pointer(outputs[2], unit), pointer(outputs[5], unit)
    dD, dbias = pointer(outputs[3], unit), pointer(outputs[4], unit)
    db, dc = pointer(db_view[0], unit), pointer(dc_view[0], unit)
    chunks, size = (length + chunk - 1) // chunk, states * WIDTH
    zero = splat(unit) * 0.0
    h = advance(pointer(given[1], unit), place * work_size(states, chunk))
    decays = advance(h, (chunk + 1) * WIDTH)
    products_b = advance(decays, chunk * WIDTH)
    products_c = advance(products_b, chunk * WIDTH)
    dts = advance(products_c, chunk * WIDTH)
    slopes = advance(dts, chunk * WIDTH)
    dt_x = advance(slopes, chunk * WIDTH)
    dys = advance(dt_x, chunk * WIDTH)
    d_dt_x = advance(dys, chunk * WIDTH)
    d_dt = advance(d_dt_x, chunk * WIDTH)
    sums_b = advance(d_dt, chunk * WIDTH)
    sums_c = advance(sums_b, states * chunk)

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
        job_place = video, first, blocks_per_job
        clear_gradient(
            gradient_rows(db, db_view, b_view, *job_place, 0, 1), b_view[6], length, states, zero
        )
        clear_gradient(
            gradient_rows(dc, dc_view, c_view, *job_place, 0, 1), c_view[6], length, states, zero
        )
        for at in range(job, job + blocks_per_job):
            store(dD, at * WIDTH, zero)
            store(dbias, at * WIDTH, zero)
            for s in range(states):
                store(dA, at * size + s * WIDTH, zero)
        for part in range((valid + chunk - 1) // chunk - 1, -1, -1):
            begin = part * chunk
            count, position = min(chunk, valid - begin), start + begin * step
            db_rows = gradient_rows(db, db_view, b_view, *job_place, position, step)
            dc_rows = gradient_rows(dc, dc_view, c_view, *job_place, position, step)
            for block in range(first, last + 1):
                at = video * blocks + block
                where = video, block, position, step
                a_log2e = advance(pointer(weights[0], unit), block * size)
                D = load(pointer(weights[1], unit), block * WIDTH)
                bias = load(pointer(weights[2], unit), block * WIDTH)
                saved = advance(pointer(given[0], unit), (at * chunks + part) * size)
                x = rows_of(pointer(x_view[0], unit), x_view, *where)
                delta = rows_of(pointer(delta_view[0], unit), delta_view, *where)
                dy = rows_of(pointer(dy_view[0], unit), dy_view, *where)
                dx = rows_of(pointer(outputs[0], unit), dx_view, *where)
                ddelta = rows_of(pointer(outputs[1], unit), dx_view, *where)
                bc = (
                    bc_rows(pointer(b_view[0], unit), b_view, *where),
                    bc_rows(pointer(c_view[0], unit), c_view, *where),
                    db_rows,
                    dc_rows,
                )

                load_steps(x, delta, bias, softplus, count, (dts, dt_x), slopes)
                for t in range(count):
                    store(dys, t * WIDTH, load_row(dy, t))
                    store(d_dt_x, t * WIDTH, zero)
                    store(d_dt, t * WIDTH, zero)
                steps = dts, dt_x, dys, d_dt_x, d_dt
                work = h, decays, products_b, products_c, sums_b, sums_c, block > first
                gradients = advance(dstate, at * size), advance(dA, at * size)
                spans = states, count, chunk
                # Constants in the usual case: a tenth of the scan's time.
                if shared:
                    differentiate_chunk(
                        *(steps, work, a_log2e, saved, gradients, bc, (False, False), spans)
                    )
                else:
                    own = b_view[6] != 0, c_view[6] != 0
                    differentiate_chunk(*(steps, work, a_log2e, saved, gradients, bc, own, spans))

                # Of a chunk first: in one long sum the rounding of every step would add up.
                sum_D, sum_bias = zero, zero
                for t in range(count - 1, -1, -1):
                    inputs, gradient = load_row(x, t), load(dys, t * WIDTH)
                    d_inputs = load(d_dt_x, t * WIDTH)
                    d_step = (d_inputs * inputs + load(d_dt, t * WIDTH) * LN2) * load(
                        slopes, t * WIDTH
                    )
                    sum_D = sum_D + gradient * inputs
                    sum_bias = sum_bias + d_step
                    store_row(ddelta, t, flush_small(d_step))
                    d_inputs = d_inputs * load(dts, t * WIDTH) + D * gradient
                    store_row(dx, t, flush_small(d_inputs))
                store(dD, at * WIDTH, load(dD, at * WIDTH) + sum_D)
                store(dbias, at * WIDTH, load(dbias, at * WIDTH) + sum_bias)
            if not b_view[6]:
                add_sums(sums_b, chunk, db_rows, count, states)
            if not c_view[6]:
                add_sums(sums_c, chunk, dc_rows, count, states)
        for block in range(first, last + 1):
            dx = rows_of(pointer(outputs[0], unit), dx_view, video, block, 0, 1)
            ddelta = rows_of(pointer(outputs[1], unit), dx_view, video, block, 0, 1)
            for position in range(valid, length):
                store_row(dx, position, zero)
                store_row(ddelta, position, zero)
