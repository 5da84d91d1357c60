"""The convolutions of this backend as operators of torch, which tracing does not look into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.library import refuse_second, register
from muse_adapter.ops.operator import state_dtype


def causal_conv1d_silu(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
) -> tuple[Tensor, ...]:
    """As in `muse_adapter.ops.dispatch`, for x in float32 or float64, E a multiple of 16."""
    w = torch.stack([weight.squeeze(1).t() for weight, _ in weights]).to(x.dtype)
    bias = torch.stack([bias for _, bias in weights]).to(x.dtype)
    results = torch.ops.muse_adapter.causal_conv1d_silu(x, w.contiguous(), bias, end)
    return results[: len(weights)]


def _forward(x: Tensor, w: Tensor, bias: Tensor, end: int) -> tuple[Tensor, Tensor]:
    from muse_adapter.ops.numba_cpu.convolution import run_forward
    from muse_adapter.ops.numba_cpu.function import last_dim_contiguous

    batch, length, channels = x.shape
    wide, w, bias = _one_type(x, w, bias)
    stops = (end, length)[: len(w)]
    results = [wide.new_empty(batch, end, channels) for end in stops]
    run_forward(last_dim_contiguous(wide), w, bias, 0, stops, results)
    first, *second = (result.to(x.dtype) for result in results)
    return first, second[0] if second else x.new_empty(0)


def _one_type(x: Tensor, *others: Tensor) -> list[Tensor]:
    """In the type of the kernels: under autocast an exported program may bring them in others."""
    return [tensor.to(state_dtype(x)) for tensor in (x, *others)]


def _forward_fake(x: Tensor, w: Tensor, bias: Tensor, end: int) -> tuple[Tensor, Tensor]:
    batch, length, channels = x.shape
    second = (batch, length, channels) if w.shape[0] == 2 else (0,)
    return x.new_empty(batch, end, channels), x.new_empty(second)


def _backward(
    x: Tensor, w: Tensor, bias: Tensor, grads: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    from muse_adapter.ops.numba_cpu.convolution import run_backward

    wide_x, wide_w, wide_bias, *wide_grads = _one_type(x, w, bias, *grads)
    dx, dw, dbias = run_backward(wide_x, wide_w, wide_bias, wide_grads)
    return dx.to(x.dtype), dw.to(w.dtype), dbias.to(bias.dtype)


def _backward_fake(
    x: Tensor, w: Tensor, bias: Tensor, grads: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    return x.new_empty(x.shape), w.new_empty(w.shape), bias.new_empty(bias.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])


def _differentiate(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    x, w, bias = ctx.saved_tensors
    given = list(grads[: w.shape[0]])
    return *torch.ops.muse_adapter.causal_conv1d_silu_backward(x, w, bias, given), None


register(
    "causal_conv1d_silu",
    "(Tensor x, Tensor w, Tensor bias, SymInt end) -> (Tensor, Tensor)",
    *(_forward, _forward_fake, _differentiate, _setup),
)
register(
    "causal_conv1d_silu_backward",
    "(Tensor x, Tensor w, Tensor bias, Tensor[] grads) -> (Tensor, Tensor, Tensor)",
    *(_backward, _backward_fake, refuse_second("the convolutions of the numba backend have")),
)
