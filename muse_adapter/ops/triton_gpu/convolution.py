"""The short convolutions of both directions with their SiLU: x is read once, nothing else kept.

What SiLU was given is computed anew in the backward pass, which gives the gradient of x of both
directions at once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from muse_adapter.ops.triton_gpu.elementary import sigmoid

STEPS, WIDTH = 16, 64  # a program's tile of positions and channels
TILES = 8  # tiles of a program in the backward pass, which sums the weights' gradients over them
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit
def row_at(tensor, position, e, length, E: tl.constexpr, TYPE: tl.constexpr):
    """Values (STEPS, WIDTH) at the positions, zero outside of the video."""
    inside = ((position >= 0) & (position < length))[:, None] & (e < E)[None, :]
    return tl.load(tensor + position[:, None] * E + e[None, :], mask=inside, other=0.0).to(TYPE)


@triton.jit
def taps_at(weight, tap, e, E: tl.constexpr, TYPE: tl.constexpr):
    """A tap of every channel, from (taps, E)."""
    return tl.load(weight + tap * E + e, mask=e < E, other=0.0).to(TYPE)[None, :]


@triton.jit
def convolved(
    x, weight, position, e, length, sign,
    E: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """The convolution at the positions; sign -1: taps look back, 1: ahead."""
    # The last row of the weights is the bias.
    result = taps_at(weight, TAPS, e, E, TYPE) + tl.zeros([position.shape[0], e.shape[0]], TYPE)
    for tap in tl.static_range(TAPS):
        seen = row_at(x, position + sign * (TAPS - 1 - tap), e, length, E, TYPE)
        result += taps_at(weight, tap, e, E, TYPE) * seen
    return result


@triton.jit
def convolve_forward(
    x, weight0, weight1, y0, y1, L, stop,
    E: tl.constexpr, BOTH: tl.constexpr, TAPS: tl.constexpr,
    STEPS: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """SiLU of the convolutions of both directions.

    Args:
        x: (batch, L, E).
        weight0, weight1: (TAPS + 1, E), the taps and the bias.
        y0: (batch, stop, E), the first positions of the direction whose taps look back.
        y1: (batch, L, E), of the other one, with BOTH.
    """
    position = tl.program_id(0) * STEPS + tl.arange(0, STEPS)
    e = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    video = tl.program_id(2).to(tl.int64)
    x += video * L * E
    offset = position[:, None] * E + e[None, :]
    live = (e < E)[None, :]
    if tl.program_id(0) * STEPS < stop:
        value = convolved(x, weight0, position, e, L, -1, E, TAPS, TYPE)
        inside = (position < stop)[:, None] & live
        tl.store(y0 + video * stop * E + offset, value * sigmoid(value), mask=inside)
    if BOTH:
        value = convolved(x, weight1, position, e, L, 1, E, TAPS, TYPE)
        inside = (position < L)[:, None] & live
        tl.store(y1 + video * L * E + offset, value * sigmoid(value), mask=inside)


@triton.jit
def d_convolved(
    x, weight, dy, position, e, length, stop, sign,
    E: tl.constexpr, TAPS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradient of the convolution (before SiLU) at the positions."""
    value = convolved(x, weight, position, e, length, sign, E, TAPS, TYPE)
    share = sigmoid(value)
    return row_at(dy, position, e, stop, E, TYPE) * share * (1.0 + value * (1.0 - share))


@triton.jit
def add_gradients(
    x, weight, dy, position, e, length, stop, sign, dx, dweight,
    E: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Add what one direction gives to the gradients of a tile of x and of its weights."""
    # The last tap, and the bias behind it, meet the present position.
    grad = d_convolved(x, weight, dy, position, e, length, stop, sign, E, TAPS, TYPE)
    row = tl.arange(0, ROWS)[:, None]
    dweight += tl.where(row == TAPS, tl.sum(grad, 0)[None, :], 0.0)
    for tap in tl.static_range(TAPS):
        lag = sign * (TAPS - 1 - tap)
        product = grad * row_at(x, position + lag, e, length, E, TYPE)
        dweight += tl.where(row == tap, tl.sum(product, 0)[None, :], 0.0)
        at = position - lag
        reached = d_convolved(x, weight, dy, at, e, length, stop, sign, E, TAPS, TYPE)
        dx += taps_at(weight, tap, e, E, TYPE) * reached
    return dx, dweight


@triton.jit
def convolve_backward(
    x, weight0, weight1, dy0, dy1, dx, dweight, L, stop,
    E: tl.constexpr, BOTH: tl.constexpr, TAPS: tl.constexpr, ROWS: tl.constexpr,
    TILES: tl.constexpr, STEPS: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """Gradients of x, from both directions at once, and parts of those of the weights.

    Args:
        dy0, dy1: gradients of the outputs of `convolve_forward`.
        dx: (batch, L, E).
        dweight: (directions, batch, parts of time, TAPS + 1, E).
    """
    part, parts = tl.program_id(0), tl.num_programs(0)
    e = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    video, batch = tl.program_id(2).to(tl.int64), tl.num_programs(2)
    x += video * L * E
    dx += video * L * E
    dy0 += video * stop * E
    dy1 += video * L * E
    sum0 = tl.zeros([ROWS, WIDTH], TYPE)
    sum1 = tl.zeros([ROWS, WIDTH], TYPE)
    for tile in range(TILES):
        begin = (part * TILES + tile) * STEPS
        if begin < L:
            position = begin + tl.arange(0, STEPS)
            total = tl.zeros([STEPS, WIDTH], TYPE)
            if begin < stop:
                total, sum0 = add_gradients(
                    x, weight0, dy0, position, e, L, stop, -1, total, sum0, E, TAPS, ROWS, TYPE
                )
            if BOTH:
                total, sum1 = add_gradients(
                    x, weight1, dy1, position, e, L, L, 1, total, sum1, E, TAPS, ROWS, TYPE
                )
            inside = (position < L)[:, None] & (e < E)[None, :]
            tl.store(dx + position[:, None] * E + e[None, :], total, mask=inside)
    row = tl.arange(0, ROWS)[:, None]
    inside = (row <= TAPS) & (e < E)[None, :]
    at = (video * parts + part) * (TAPS + 1) * E + row * E + e[None, :]
    tl.store(dweight + at, sum0, mask=inside)
    if BOTH:
        tl.store(dweight + batch * parts * (TAPS + 1) * E + at, sum1, mask=inside)


class Convolutions(torch.autograd.Function):
    """SiLU of the convolutions of one direction or both, (batch, stop, E) and (batch, L, E).

    Arguments: x (batch, L, E), the positions wanted of the first direction, then the weight
    (E, 1, taps) and the bias (E,) of each.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, stop: int, *weights: Tensor) -> tuple[Tensor, ...]:
        x = x.contiguous()
        batch, length, channels = x.shape
        joined = _joined(weights)
        y = [x.new_empty(batch, stop, channels), torch.empty_like(x)][: len(joined)]
        width = _width(channels)
        convolve_forward[(triton.cdiv(length, STEPS), triton.cdiv(channels, width), batch)](
            *(x, joined[0], joined[-1], y[0], y[-1], length, stop),
            E=channels,
            BOTH=len(y) > 1,
            TAPS=weights[0].shape[-1],
            STEPS=STEPS,
            WIDTH=width,
            TYPE=tl.float64 if x.dtype == torch.float64 else tl.float32,
            **OPTIONS,
        )
        ctx.save_for_backward(x, *weights)
        ctx.stop = stop
        return tuple(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dx, *dweights = _Gradients.apply(ctx.stop, len(grads), *grads, *ctx.saved_tensors)
        return dx, None, *dweights


class _Gradients(torch.autograd.Function):
    """The backward pass as a function of its own, so that a derivative of it is refused by name."""

    @staticmethod
    def forward(ctx: Any, stop: int, outputs: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        dy, x, weights = tensors[:outputs], tensors[outputs], tensors[outputs + 1 :]
        dy = [grad.contiguous() for grad in dy]
        batch, length, channels = x.shape
        joined = _joined(weights)
        taps = weights[0].shape[-1]
        dx, width = torch.empty_like(x), _width(channels)
        parts = triton.cdiv(length, STEPS * TILES)
        dweight = joined[0].new_empty(outputs, batch, parts, taps + 1, channels)
        convolve_backward[(parts, triton.cdiv(channels, width), batch)](
            *(x, joined[0], joined[-1], dy[0], dy[-1], dx, dweight, length, stop),
            E=channels,
            BOTH=outputs > 1,
            TAPS=taps,
            ROWS=triton.next_power_of_2(taps + 1),
            TILES=TILES,
            STEPS=STEPS,
            WIDTH=width,
            TYPE=tl.float64 if x.dtype == torch.float64 else tl.float32,
            **OPTIONS,
        )
        dweights = []
        for grad, weight, bias in zip(
            dweight.sum((1, 2)), weights[::2], weights[1::2], strict=True
        ):
            dweights += [grad[:-1].t().unsqueeze(1).to(weight.dtype), grad[-1].to(bias.dtype)]
        return dx, *dweights

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "the triton backend of the convolution has no second derivative: "
            "use backend='reference'"
        )


def _joined(weights: tuple[Tensor, ...]) -> list[Tensor]:
    """Taps and bias of each direction, (taps + 1, E), in the type of the sums."""
    dtype = torch.float64 if weights[0].dtype == torch.float64 else torch.float32
    return [
        torch.cat([weight.squeeze(1).t(), bias.unsqueeze(0)]).to(dtype)
        for weight, bias in zip(weights[::2], weights[1::2], strict=True)
    ]


def _width(channels: int) -> int:
    return min(WIDTH, triton.next_power_of_2(channels))
