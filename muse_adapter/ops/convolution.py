"""Convolutions: the short depthwise one in front of a scan, and the 3x3 one of the pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.dispatch import choose


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Depthwise convolution over the last `taps` tokens; the last tap meets the present one.

    Args:
        x: (batch, L, E).
        weight: (E, 1, taps), as `torch.nn.Conv1d` keeps it.
        bias: (E,).
        reverse: time runs backwards: the taps look at later tokens. Only the taps are flipped.

    Returns:
        (batch, L, E) in the type of x.
    """
    return _ShortConvolution.apply(x, weight.to(x.dtype), bias.to(x.dtype), reverse)


def causal_conv1d_silu(
    x: Tensor,
    weights: Sequence[tuple[Tensor, Tensor]],
    *,
    end: int | None = None,
    backend: str | None = None,
) -> tuple[Tensor, ...]:
    """SiLU of the short convolutions of one direction or both, over the same tokens.

    Args:
        x: (batch, L, E).
        weights: weight (E, 1, taps) and bias (E,) of the direction that looks back; then, if there
            are two, of the one that looks ahead.
        end: only the tokens in front of it are wanted of the first direction; None: all.
        backend: name of a backend; None chooses.

    Returns:
        (batch, end, E), and of a second direction (batch, L, E), in the type of x.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: the backend asked for cannot run.
    """
    end = x.shape[1] if end is None else min(end, x.shape[1])
    module = choose(x.device, backend)
    if hasattr(module, "causal_conv1d_silu"):
        with without_autocast(x.device.type):
            return module.causal_conv1d_silu(x, weights, end)
    return convolve_in_turn(x, weights, end)


def convolve_in_turn(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
) -> tuple[Tensor, ...]:
    """`causal_conv1d_silu`, one direction after the other, in plain torch."""
    results = []
    for index, (weight, bias) in enumerate(weights):
        part = x if index else x[:, :end]
        results.append(F.silu(short_convolution(part, weight, bias, reverse=bool(index))))
    return tuple(results)


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor, *, backend: str | None = None) -> Tensor:
    """3x3 convolution with zeros around each map: as many rows and columns as before.

    Args:
        x: (n, C, H, W).
        weight: (O, C, 3, 3).
        bias: (O,).
        backend: name of a backend; None chooses.

    Returns:
        (n, O, H, W) in the type of x; under autocast in autocast's type.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: the backend asked for cannot run.
    """
    run = getattr(choose(x.device, backend), "conv3x3", None)
    y: Tensor | None = None
    if run is not None and not torch.is_autocast_enabled(x.device.type):
        y = run(x, weight, bias)
    return F.conv2d(x, weight, bias, padding=1) if y is None else y


class _ShortConvolution(torch.autograd.Function):
    # Torch's own gradient of a depthwise weight is 3 to 50 times slower on a CPU than the sums
    # below.

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.reverse = reverse
        return _convolve(x, weight, bias, reverse)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        taps, length = weight.shape[-1], x.shape[1]
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:
            # The transposed convolution is the convolution with time reversed.
            grad_x = _convolve(grad, weight, None, not ctx.reverse)
        if ctx.needs_input_grad[1]:
            wide = torch.promote_types(x.dtype, torch.float32)
            early, late = (grad, x) if ctx.reverse else (x, grad)
            sums = []
            for lag in range(taps - 1, -1, -1):
                overlap = max(length - lag, 0)
                product = early[:, :overlap].to(wide) * late[:, length - overlap :].to(wide)
                sums.append(product.sum((0, 1)))
            grad_weight = torch.stack(sums, dim=-1).unsqueeze(1).to(weight.dtype)
        return grad_x, grad_weight, grad.sum((0, 1)), None


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool) -> Tensor:
    """(batch, L, E) is the channels-last layout of a map of height 1: as such it needs no copy."""
    taps, length = weight.shape[-1], x.shape[1]
    weight = (weight.flip(-1) if reverse else weight).unsqueeze(2)
    with without_autocast(x.device.type):
        y = F.conv2d(
            x.transpose(1, 2).unsqueeze(2), weight, bias, padding=(0, taps - 1), groups=x.shape[-1]
        )
    y = y.squeeze(2).transpose(1, 2)  # (batch, L + taps - 1, E), the borders of both directions
    return y[:, taps - 1 :] if reverse else y[:, :length]
