"""The short convolutions as custom operators, which tracing does not look into."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.backend import by_name
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.library import refuse_second, register


def convolutions(x: Tensor, weights: list[Tensor], end: int) -> list[Tensor]:
    """Run `muse_adapter.ops.causal_conv1d_silu`, differentiable once."""
    return torch.ops.muse_adapter.triton_convolutions(x, weights, end)


def _convolutions(x: Tensor, weights: list[Tensor], end: int) -> list[Tensor]:
    _check_convolutions(x, weights, end)
    from muse_adapter.ops.triton_gpu import convolution

    return convolution.run_forward(x, weights, end)


def _check_convolutions(x: Tensor, weights: list[Tensor], end: int) -> None:
    by_name("triton").require(x.device)
    _, length, channels = check_rank("x", x, "batch", "L", "E")
    check_tensor("x", x, None, ("x", x))
    if len(weights) not in (2, 4):
        raise ValueError(f"weights must be a weight and a bias, or two of each, got {len(weights)}")
    _, _, taps = check_rank("weights[0]", weights[0], "E", "1", "taps")
    for index, tensor in enumerate(weights):
        shape = (channels,) if index % 2 else (channels, 1, taps)
        check_tensor(f"weights[{index}]", tensor, shape, ("x", x))
    if taps == 0 or not 0 <= end <= length:
        raise ValueError(f"end must lie between 0 and L = {length} and taps not be 0, got {end}")


def _convolutions_fake(x: Tensor, weights: list[Tensor], end: int) -> list[Tensor]:
    batch, length, channels = x.shape
    return [x.new_empty(batch, size, channels) for size in (end, length)[: len(weights) // 2]]


def _setup_convolutions(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    x, weights, ctx.end = inputs
    ctx.save_for_backward(x, *weights)


def _differentiate_convolutions(ctx: Any, grads: list[Tensor]) -> tuple[Any, ...]:
    x, *weights = ctx.saved_tensors
    dx, dweights = torch.ops.muse_adapter.triton_convolutions_backward(x, weights, grads, ctx.end)
    channels, _, taps = weights[0].shape
    given = []
    for row in dweights.unbind(0):
        weight, bias = row.split([channels * taps, channels])
        given += [weight.view(channels, 1, taps), bias]
    return dx, [g.to(w.dtype) for g, w in zip(given, weights, strict=True)], None


def _convolutions_backward(
    x: Tensor, weights: list[Tensor], grads: list[Tensor], end: int
) -> list[Tensor]:
    _check_convolutions(x, weights, end)
    batch, length, channels = x.shape
    if len(grads) != len(weights) // 2:
        raise ValueError(f"grads must be of {len(weights) // 2} results, got {len(grads)}")
    for grad, size in zip(grads, (end, length), strict=False):
        check_tensor("grads", grad, (batch, size, channels), ("x", x))
    from muse_adapter.ops.triton_gpu import convolution

    return convolution.run_backward(x, weights, grads, end)


def _convolutions_backward_fake(
    x: Tensor, weights: list[Tensor], grads: list[Tensor], end: int
) -> list[Tensor]:
    numbers = weights[0].shape[0] * (weights[0].shape[2] + 1)
    return [
        x.new_empty(x.shape),
        x.new_empty((len(weights) // 2, numbers), dtype=state_dtype(x)),
    ]


register(
    "triton_convolutions",
    "(Tensor x, Tensor[] weights, SymInt end) -> Tensor[]",
    *(_convolutions, _convolutions_fake, _differentiate_convolutions, _setup_convolutions),
)
register(
    "triton_convolutions_backward",
    "(Tensor x, Tensor[] weights, Tensor[] grads, SymInt end) -> Tensor[]",
    *(_convolutions_backward, _convolutions_backward_fake, refuse_second("the triton backend has")),
)
