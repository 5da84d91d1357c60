"""The short depthwise convolution in front of a scan, in plain torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.autocast import without_autocast


def short_convolution(x: Tensor, weight: Tensor, bias: Tensor, *, reverse: bool = False) -> Tensor:
    """Convolve each channel over the last `taps` tokens; the last tap meets the present one.

    Args:
        x: (batch, L, E).
        weight: (E, 1, taps), as `torch.nn.Conv1d` keeps it.
        bias: (E,).
        reverse: Time runs backwards: the taps meet later tokens. Only the taps are flipped.

    Returns:
        (batch, L, E) in the type of x.
    """
    return _ShortConvolution.apply(x, weight.to(x.dtype), bias.to(x.dtype), reverse)


class _ShortConvolution(torch.autograd.Function):
    # Torch's own gradient of a depthwise weight is 3 to 50 times slower on a CPU than the sums
    # below.

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor, reverse: bool) -> Tensor:
        return _convolve(x, weight, bias, reverse)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.reverse = inputs
        ctx.save_for_backward(x, weight)

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
                # `narrow` has a batching rule also where it takes all; a slice then is an alias.
                kept = early.narrow(1, 0, overlap), late.narrow(1, length - overlap, overlap)
                product = kept[0].to(wide) * kept[1].to(wide)
                sums.append(product.sum((0, 1)))
            grad_weight = torch.stack(sums, dim=-1).unsqueeze(1).to(weight.dtype)
        return grad_x, grad_weight, grad.sum((0, 1)), None

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise RuntimeError("the convolution in front of the scan has no derivative in forward mode")


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
