"""The kernels of the causal convolutions with their SiLU, both directions in one pass.

By torch these are a dozen operations that each read and write the whole sequence; here it is read
once. The backward pass computes what stood before the SiLU again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.numba_cpu.denormals import flush_denormals, restore_mode
from muse_adapter.ops.numba_cpu.elementary import exp2
from muse_adapter.ops.numba_cpu.function import addresses, last_dim_contiguous, summed, view, zeros
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

ROWS = 64  # positions that a thread goes through, block by block, while they are in its caches
MIN_ELEMENTS = 1 << 15  # below that a second thread is not worth its start
PARTS = 16  # jobs there are at least, if the sequence is long enough


@inline
def convolve_at(
    x: Any, to_x: int, stride: int, w: Any, to_w: int, bias: Any, t: int, sizes: Any
) -> Any:
    """Convolve at position t the channels whose values begin at `to_x` and `to_w`.

    `sizes`: positions, taps, channels, and 1 for the reverse direction: the last tap meets position
    t, those before it later ones.
    """
    length, taps, channels, reverse = sizes
    total = bias
    for k in range(taps):
        lag = taps - 1 - k if reverse else k - taps + 1
        if 0 <= t + lag < length:
            total = total + load(w, to_w + k * channels) * load(x, to_x + (t + lag) * stride)
    return total


_unpack_forward = unpacker(6, 3, 2, 1, 1, 2, 2)


@Kernel
def forward(memory: Any) -> None:
    """Run the jobs that are left.

    Arguments in the memory:
        sizes: batch, L, blocks, taps, parts, directions.
        x_view: address and strides of batch and time.
        weights: addresses of the taps (directions, taps, E) and biases (directions, E).
        begin, count, ends: the positions wanted: `count` from `begin` on, of each direction those
            before its end.
        outputs: for each direction the address of (batch, end - begin, E).
    """
    unit, counters, threads, sizes, x_view, weights, begin, count, ends, outputs = _unpack_forward(
        memory
    )
    if next_number(counters + 8) >= threads:
        return
    batch, length, blocks, taps, parts, directions = sizes
    channels = blocks * WIDTH
    x, w, bias = pointer(x_view[0], unit), pointer(weights[0], unit), pointer(weights[1], unit)
    one = splat(unit)
    while True:
        job = next_number(counters)
        video, part = job // parts, job % parts
        if video >= batch:
            return
        for t in range(begin + count * part // parts, begin + count * (part + 1) // parts):
            for direction in range(directions):
                end = ends[direction]
                if t >= end:
                    continue
                y = pointer(outputs[direction], unit)
                row = (video * (end - begin) + t - begin) * channels
                for block in range(blocks):
                    channel = block * WIDTH
                    v = convolve_at(
                        x, video * x_view[1] + channel, x_view[2],
                        w, direction * taps * channels + channel,
                        load(bias, direction * channels + channel),
                        t, (length, taps, channels, direction),
                    )  # fmt: skip
                    store(y, row + channel, v / (one + exp2(v * -LOG2E)))


_unpack_backward = unpacker(6, 3, 2, 1, 3, 3, 1, 3)


@Kernel
def backward(memory: Any) -> None:
    """Run the jobs that are left: gradients of x, and each job's own of taps and biases.

    Arguments in the memory:
        end_forward: positions of which the forward direction has gradients.
        forward_view, reverse_view: of the gradient of each direction's result: address, strides of
            batch and time.
        work: address of (ROWS + taps) WIDTH numbers for each thread.
        outputs: addresses of dx (batch, L, E), and of zeros, of the gradients of taps (batch
            parts, directions, taps, E) and biases (batch parts, directions, E).
        sizes, x_view, weights: as in `forward`.
    """
    (
        unit,
        counters,
        threads,
        sizes,
        x_view,
        weights,
        end_forward,
        forward_view,
        reverse_view,
        work,
        outputs,
    ) = _unpack_backward(memory)
    place = next_number(counters + 8)
    if place >= threads:
        return
    batch, length, blocks, taps, parts, directions = sizes
    channels = blocks * WIDTH
    x, w, bias = pointer(x_view[0], unit), pointer(weights[0], unit), pointer(weights[1], unit)
    dx, dw, dbias = (
        pointer(outputs[0], unit),
        pointer(outputs[1], unit),
        pointer(outputs[2], unit),
    )
    span = ROWS + taps
    # Gradients in front of the SiLU: of the slab, and of the positions that its taps reach.
    before = advance(pointer(work, unit), place * span * WIDTH)
    one = splat(unit)
    zero = one * 0.0
    mode = flush_denormals()
    while True:
        job = next_number(counters)
        video, part = job // parts, job % parts
        if video >= batch:
            restore_mode(mode)
            return
        last = length * (part + 1) // parts
        for begin in range(length * part // parts, last, ROWS):
            end = min(begin + ROWS, last)
            for block in range(blocks):
                channel = block * WIDTH
                to_x = video * x_view[1] + channel
                to_dx = video * length * channels + channel
                for t in range(begin, end):
                    store(dx, to_dx + t * channels, zero)
                for direction in range(directions):
                    own = direction * channels + channel  # of the bias
                    shift = load(bias, own)
                    taps_at = direction * taps * channels + channel
                    grad_view = reverse_view if direction else forward_view
                    grad = pointer(grad_view[0], unit)
                    to_grad = video * grad_view[1] + channel
                    limit = length if direction else end_forward
                    first = max(0, begin - taps + 1) if direction else begin
                    behind = min(limit, end if direction else end + taps - 1)
                    for t in range(first, behind):
                        v = convolve_at(
                            x,
                            to_x,
                            x_view[2],
                            w,
                            taps_at,
                            shift,
                            t,
                            (length, taps, channels, direction),
                        )
                        gate = one / (one + exp2(v * -LOG2E))
                        slope = gate * (one + v * (one - gate))
                        given = load(grad, to_grad + t * grad_view[2])
                        store(before, (t - first) * WIDTH, given * slope)
                    parts_at = job * directions * channels + own
                    total = load(dbias, parts_at)
                    for t in range(begin, min(end, limit)):
                        total = total + load(before, (t - first) * WIDTH)
                    store(dbias, parts_at, total)
                    for k in range(taps):
                        lag = taps - 1 - k if direction else k - taps + 1  # of what the tap meets
                        tap = load(w, taps_at + k * channels)
                        to_dw = (job * directions + direction) * taps * channels
                        to_dw += k * channels + channel
                        total = load(dw, to_dw)
                        for t in range(max(begin, -lag), min(end, limit, length - lag)):
                            total = total + load(before, (t - first) * WIDTH) * load(
                                x, to_x + (t + lag) * x_view[2]
                            )
                        store(dw, to_dw, total)
                        for t in range(max(begin, first + lag), min(end, behind + lag)):
                            to = to_dx + t * channels
                            store(
                                dx, to, load(dx, to) + tap * load(before, (t - lag - first) * WIDTH)
                            )


def parts_of(batch: int, length: int) -> int:
    """Return the jobs of each video, by shapes alone, which fixes the order of all sums."""
    return max(1, min(-(-PARTS // max(1, batch)), length // ROWS))


def run_forward(
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    begin: int,
    ends: tuple[int, ...],
    results: Sequence[Tensor | None],
) -> None:
    """Write SiLU of the convolutions at the positions from `begin` up to each direction's end.

    Args:
        x: (batch, L, E), float32 or float64, E a multiple of WIDTH, last dimension contiguous.
        w: (directions, taps, E), contiguous, like bias (directions, E).
        begin, ends: a direction that is not wanted has the end 0.
        results: for each direction (batch, end - begin, E), contiguous; None where not wanted.
    """
    jobs = x.shape[0], max(ends) - begin
    both = [*ends, 0][:2], [*results, None][:2]  # a kernel always reads of two directions
    rest = begin, jobs[1], tuple(both[0]), addresses(*both[1])
    _run(forward, x, w, bias, jobs, threads_for(*jobs, x), *rest)


def run_backward(
    x: Tensor, w: Tensor, bias: Tensor, grads: list[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, w and bias from those of both results.

    Args:
        x, w, bias: as in `run_forward`.
        grads: of each direction (batch, end, E), from the first position on.
    """
    batch, length, channels = x.shape
    parts = batch * parts_of(batch, length)
    x, grads = last_dim_contiguous(x), [last_dim_contiguous(grad) for grad in grads]
    dx = x.new_empty(batch, length, channels)
    dw, dbias = zeros(x, parts, *w.shape), zeros(x, parts, *bias.shape)
    threads = threads_for(batch, length, x)
    work = x.new_empty(threads, (ROWS + w.shape[1]) * WIDTH)
    views = (*(view(grad)[:3] for grad in grads), (0, 0, 0))[:2]
    rest = grads[0].shape[1], *views, work.data_ptr(), addresses(dx, dw, dbias)
    _run(backward, x, w, bias, (batch, length), threads, *rest)
    return dx, summed(dw), summed(dbias)


def threads_for(batch: int, length: int, x: Tensor) -> int:
    """Return how many threads share the work."""
    jobs = batch * parts_of(batch, length)
    enough = batch * length * x.shape[2] >= MIN_ELEMENTS
    return max(1, min(torch.get_num_threads(), jobs)) if enough else 1


def _run(
    kernel: Kernel,
    x: Tensor,
    w: Tensor,
    bias: Tensor,
    jobs: tuple[int, int],
    threads: int,
    *rest: Any,
) -> None:
    batch, length, channels = x.shape
    sizes = batch, length, channels // WIDTH, w.shape[1], parts_of(*jobs), len(w)
    kernel.run(x.dtype, threads, sizes, view(x)[:3], addresses(w, bias), *rest)
