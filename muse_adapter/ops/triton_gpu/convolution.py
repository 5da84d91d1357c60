"""The short convolutions of both directions with their SiLU: x is read once, and saved alone.

What SiLU was given is computed anew in the backward pass, which gives the gradient of x of both
directions at once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.triton_gpu.elementary import (
    VARYING,
    check_offsets,
    checked_grid,
    place,
    sigmoid,
)
from muse_adapter.ops.triton_gpu.launch import cdiv, launch, next_power_of_2

STEPS, WIDTH = 16, 64  # a tile of positions and channels in the forward pass
TILES = 8  # tiles of a program, which reads the taps once
CHANNELS, SEGMENT = 128, 96  # channels and positions of a program in the backward pass
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def row_at(tensor, position, e, length, E: tl.constexpr, TYPE: tl.constexpr):
    """Values (STEPS, WIDTH) at the positions, zero outside of the video."""
    inside = ((position >= 0) & (position < length))[:, None] & (e < E)[None, :]
    return tl.load(tensor + position[:, None] * E + e[None, :], mask=inside, other=0.0).to(TYPE)


@triton.jit
def taps_at(weight, tap, e, E: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr):
    """Load a tap of every channel, from (E, TAPS)."""
    return tl.load(weight + e * TAPS + tap, mask=e < E, other=0.0).to(TYPE)


@triton.jit
def taps_of(weight, bias, e, E: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr):
    """Taps of every channel, and behind them its bias."""
    taps = ()
    for tap in tl.static_range(TAPS):
        taps = taps + (taps_at(weight, tap, e, E, TAPS, TYPE),)
    return taps + (taps_at(bias, 0, e, E, 1, TYPE),)


@triton.jit
def convolved(
    x, taps, position, e, length, sign,
    E: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Convolve at the positions; sign -1: taps look back, 1: forward in time."""
    result = taps[TAPS][None, :] + tl.zeros([position.shape[0], e.shape[0]], TYPE)
    for tap in tl.static_range(TAPS):
        seen = row_at(x, position + sign * (TAPS - 1 - tap), e, length, E, TYPE)
        result += taps[tap][None, :] * seen
    return result


@triton.jit(**VARYING)
def convolve_forward(
    x, weight0, weight1, bias0, bias1, y0, y1, L, stop,
    E: tl.constexpr, BOTH: tl.constexpr, TAPS: tl.constexpr,
    STEPS: tl.constexpr, TILES: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolutions of both directions, TILES times STEPS positions a program.

    Args:
        x: (batch, L, E).
        weight0, weight1: (E, 1, TAPS), contiguous.
        bias0, bias1: (E,), contiguous.
        y0: (batch, stop, E), the first positions of the direction whose taps look back.
        y1: (batch, L, E), of the other one, with BOTH.
    """
    rows = (L + STEPS * TILES - 1) // (STEPS * TILES)
    begin, video = tl.program_id(0) % rows * STEPS * TILES, tl.program_id(0) // rows
    video = video.to(tl.int64)
    e = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    x += video * L * E
    y0 += video * stop * E
    y1 += video * L * E
    live = (e < E)[None, :]
    taps0 = taps_of(weight0, bias0, e, E, TAPS, TYPE)
    taps1 = taps_of(weight1, bias1, e, E, TAPS, TYPE)
    for first in range(begin, tl.minimum(begin + STEPS * TILES, L), STEPS):
        position = first + tl.arange(0, STEPS)
        offset = position[:, None] * E + e[None, :]
        if first < stop:
            value = convolved(x, taps0, position, e, L, -1, E, TAPS, TYPE)
            inside = (position < stop)[:, None] & live
            tl.store(y0 + offset, value * sigmoid(value), mask=inside)
        if BOTH:
            value = convolved(x, taps1, position, e, L, 1, E, TAPS, TYPE)
            inside = (position < L)[:, None] & live
            tl.store(y1 + offset, value * sigmoid(value), mask=inside)


@triton.jit
def past_silu(value, grad):
    """Gradient of what SiLU was given, from that of its result."""
    share = sigmoid(value)
    return grad * share * (1.0 + value * (1.0 - share))


@triton.jit
def shifted(window, value, COUNT: tl.constexpr):
    """Move the window, the last COUNT values of something, one step on."""
    moved = ()
    for i in tl.static_range(COUNT - 1):
        moved = moved + (window[i + 1],)
    return moved + (value,)


@triton.jit(**VARYING)
def convolve_backward(
    x, weight0, weight1, bias0, bias1, dy0, dy1, dx, dweight, L, stop, segment,
    E: tl.constexpr, BOTH: tl.constexpr, TAPS: tl.constexpr,
    WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradients of x, from both directions at once, and parts of those of the weights.

    A program walks through a segment of time. At step t it knows x up to t, and so the gradients of
    the first convolution up to t, and of the second one, which looks W = TAPS - 1 ahead, up to
    t - W: all that x at t - W has a part in.

    Args:
        dy0, dy1: gradients of the outputs of `convolve_forward`.
        dx: (batch, L, E).
        dweight: (directions, batch, segments, E TAPS + E): of the weight (E, TAPS), of the bias.
        segment: steps in a segment.
    """
    W: tl.constexpr = TAPS - 1
    part, parts = tl.program_id(1), tl.num_programs(1)
    block, video, batch = place(E, WIDTH)
    video, batch = video.to(tl.int64), batch.to(tl.int64)
    e = block * WIDTH + tl.arange(0, WIDTH)
    live = e < E
    x += video * L * E + e
    dx += video * L * E + e
    dy0 += video * stop * E + e
    dy1 += video * L * E + e
    begin = part * segment
    end = tl.minimum(begin + segment, L)

    nothing = tl.zeros([WIDTH], TYPE)
    taps0, taps1, sums0, sums1 = (), (), (), ()
    for tap in tl.static_range(TAPS):
        taps0 = taps0 + (taps_at(weight0, tap, e, E, TAPS, TYPE),)
        taps1 = taps1 + (taps_at(weight1, tap, e, E, TAPS, TYPE),)
        sums0 = sums0 + (nothing,)
        sums1 = sums1 + (nothing,)
    shift0 = taps_at(bias0, 0, e, E, 1, TYPE)
    shift1 = taps_at(bias1, 0, e, E, 1, TYPE)
    bias_sum0, bias_sum1 = nothing, nothing
    # The last TAPS values, the newest one last.
    seen, grads0, grads1 = (nothing,), (nothing,), (nothing,)
    for i in tl.static_range(W):
        at = begin - W + i
        inside = live & (e < tl.where(at >= 0, E, 0))
        seen = seen + (tl.load(x + at * E, mask=inside, other=0.0).to(TYPE),)
        grads0 = grads0 + (nothing,)
        grads1 = grads1 + (nothing,)
    for t in range(begin, end + W):
        back = t - W
        here = live & (e < tl.where(t < L, E, 0))
        seen = shifted(seen, tl.load(x + t * E, mask=here, other=0.0).to(TYPE), TAPS)
        above = tl.load(dy0 + t * E, mask=live & (e < tl.where(t < stop, E, 0)), other=0.0)
        value = shift0
        for tap in tl.static_range(TAPS):
            value += taps0[tap] * seen[tap]
        grad0 = past_silu(value, above.to(TYPE))
        grads0 = shifted(grads0, grad0, TAPS)
        mine = tl.where(t < end, grad0, 0.0)  # the rest is the next segment's
        bias_sum0 += mine
        moved = ()
        for tap in tl.static_range(TAPS):
            moved = moved + (sums0[tap] + mine * seen[tap],)
        sums0 = moved
        d_seen = nothing
        for tap in tl.static_range(TAPS):
            d_seen += taps0[tap] * grads0[W - tap]
        if BOTH:
            above = tl.load(dy1 + back * E, mask=live & (e < tl.where(back >= 0, E, 0)), other=0.0)
            value = shift1
            for tap in tl.static_range(TAPS):
                value += taps1[tap] * seen[W - tap]
            grad1 = past_silu(value, above.to(TYPE))
            grads1 = shifted(grads1, grad1, TAPS)
            mine = tl.where(back >= begin, grad1, 0.0)
            bias_sum1 += mine
            moved = ()
            for tap in tl.static_range(TAPS):
                moved = moved + (sums1[tap] + mine * seen[W - tap],)
            sums1 = moved
            for tap in tl.static_range(TAPS):
                d_seen += taps1[tap] * grads1[tap]
        tl.store(dx + back * E, d_seen, mask=live & (e < tl.where(back >= begin, E, 0)))
    rows = dweight + (video * parts + part) * (TAPS + 1) * E
    for tap in tl.static_range(TAPS):
        tl.store(rows + e * TAPS + tap, sums0[tap], mask=live)
    tl.store(rows + TAPS * E + e, bias_sum0, mask=live)
    if BOTH:
        rows += batch * parts * (TAPS + 1) * E
        for tap in tl.static_range(TAPS):
            tl.store(rows + e * TAPS + tap, sums1[tap], mask=live)
        tl.store(rows + TAPS * E + e, bias_sum1, mask=live)


def run_forward(x: Tensor, weights: Sequence[Tensor], stop: int) -> list[Tensor]:
    """SiLU of the convolutions of one direction or both, (batch, stop, E) and (batch, L, E).

    Args:
        x: (batch, L, E).
        weights: weight (E, 1, taps) and bias (E,) of each direction.
        stop: positions wanted of the first.
    """
    x = x.contiguous()
    batch, length, channels = x.shape
    taps = weights[0].shape[-1]
    check_offsets(max(length, taps + 1) * channels)
    y = [x.new_empty(batch, stop, channels)]
    if len(weights) > 2:
        y.append(torch.empty_like(x))
    width = min(WIDTH, next_power_of_2(channels))
    grid = checked_grid(cdiv(length, STEPS * TILES) * batch, cdiv(channels, width))
    with torch.cuda.device_of(x):  # kernels are launched on the current device
        launch(
            *(convolve_forward, grid, OPTIONS),
            *((x, *_pairs(weights), y[0], y[-1]), (length, stop)),
            E=channels,
            BOTH=len(y) > 1,
            TAPS=taps,
            STEPS=STEPS,
            TILES=TILES,
            WIDTH=width,
            TYPE=tl.float64 if x.dtype == torch.float64 else tl.float32,
        )
    return y


def run_backward(
    x: Tensor, weights: Sequence[Tensor], grads: Sequence[Tensor], stop: int
) -> list[Tensor]:
    """Gradients of x, and of the weights: (directions, E taps + E), weight and bias of each."""
    x = x.contiguous()
    dy = [grad.contiguous() for grad in grads]
    batch, length, channels = x.shape
    taps = weights[0].shape[-1]
    check_offsets(max(length, taps + 1) * channels)
    dx, width = torch.empty_like(x), min(CHANNELS, next_power_of_2(channels))
    segment = max(SEGMENT, cdiv(length, 65535))  # the second axis has no more programs
    parts = cdiv(length, segment)
    grid = checked_grid(cdiv(channels, width) * batch, parts)
    shape = len(dy), batch, parts, channels * (taps + 1)
    dweight = torch.empty(shape, dtype=state_dtype(x), device=x.device)
    with torch.cuda.device_of(x):
        launch(
            *(convolve_backward, grid, OPTIONS),
            (x, *_pairs(weights), dy[0], dy[-1], dx, dweight),
            (length, stop, segment),
            E=channels,
            BOTH=len(dy) > 1,
            TAPS=taps,
            WIDTH=width,
            TYPE=tl.float64 if x.dtype == torch.float64 else tl.float32,
        )
    return [dx, dweight.sum((1, 2))]


def _pairs(weights: Sequence[Tensor]) -> list[Tensor]:
    """Weights of both directions, then biases; those of the only direction twice."""
    weight, bias = weights[::2], weights[1::2]
    return [t.contiguous() for t in (weight[0], weight[-1], bias[0], bias[-1])]
