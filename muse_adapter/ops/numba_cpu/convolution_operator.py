"""The short convolutions as custom operators, which tracing does not look into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.backend import by_name
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.library import refuse_second, register


def causal_conv1d_silu(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
) -> tuple[Tensor, ...]:
    """Convolve x in float32 or float64, E a multiple of 16, see `muse_adapter.ops`."""
    w = torch.stack([weight.squeeze(1).t() for weight, _ in weights]).to(x.dtype)
    bias = torch.stack([bias for _, bias in weights]).to(x.dtype)
    results = torch.ops.muse_adapter.causal_conv1d_silu(x, w.contiguous(), bias, end)
    return results[: len(weights)]


def _forward(x: Tensor, w: Tensor, bias: Tensor, end: int) -> tuple[Tensor, Tensor]:
    batch, length, channels = _check(x, w, bias, end)
    from muse_adapter.ops.numba_cpu.convolution import run_forward
    from muse_adapter.ops.numba_cpu.function import last_dim_contiguous

    wide, w, bias = _one_type(x, w, bias)
    ends = (end, length)[: len(w)]
    results = [wide.new_empty(batch, end, channels) for end in ends]
    run_forward(last_dim_contiguous(wide), w.contiguous(), bias.contiguous(), 0, ends, results)
    first, *second = (result.to(x.dtype) for result in results)
    return first, second[0] if second else x.new_empty(0)


def _check(x: Tensor, w: Tensor, bias: Tensor, end: int) -> tuple[int, int, int]:
    """Refuse what does not fit: the kernels read by address."""
    by_name("numba").require(x.device)  # an exported program may run elsewhere
    from muse_adapter.ops.numba_cpu.simd import WIDTH

    batch, length, channels = check_rank("x", x, "batch", "L", "E")
    directions, taps, _ = check_rank("w", w, "directions", "taps", "E")
    check_tensor("x", x, None, ("x", x))
    check_tensor("w", w, (directions, taps, channels), ("x", x))
    check_tensor("bias", bias, (directions, channels), ("x", x))
    if directions not in (1, 2) or taps == 0 or channels % WIDTH:
        raise ValueError(
            f"w must be of one direction or two, with taps, and E a multiple of {WIDTH}, got "
            f"{(directions, taps, channels)}"
        )
    if not 0 <= end <= length:
        raise ValueError(f"end must lie between 0 and L = {length}, got {end}")
    return batch, length, channels


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
    batch, length, channels = _check(x, w, bias, 0)
    from muse_adapter.ops.numba_cpu.convolution import run_backward

    if len(grads) != len(w):
        raise ValueError(f"grads must be of {len(w)} directions, got {len(grads)}")
    _, end, _ = check_rank("grads[0]", grads[0], "batch", "end", "E")
    for index, (grad, size) in enumerate(zip(grads, (min(end, length), length), strict=False)):
        check_tensor(f"grads[{index}]", grad, (batch, size, channels), ("x", x))
    wide_x, wide_w, wide_bias, *wide_grads = _one_type(x, w, bias, *grads)
    dx, dw, dbias = run_backward(wide_x, wide_w.contiguous(), wide_bias.contiguous(), wide_grads)
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
