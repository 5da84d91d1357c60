"""Linear maps: torch's, or oneDNN's where torch's are the slower ones.

On an AMD EPYC with AVX-512 MKL, which torch takes for float32, reaches 105 GFLOP/s with one thread,
and oneDNN 240. With torch's instead, inference of the head over 3,060 tokens takes 1.40 times as
long with 1 thread and 1.41 times with 2, and a training step 1.45 and 1.37 times (`python -m
benchmarks.ablation`, 2 cores of an AMD EPYC with AVX-512, torch 2.13.0, 2026-11-29). With torch and
oneDNN kept to AVX2, by ATEN_CPU_CAPABILITY=avx2 and ONEDNN_MAX_CPU_ISA=AVX2, it is 1.04 and 1.05,
1.04 and 1.03 times.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from muse_adapter.ops.checks import values_can_be_asked
from muse_adapter.ops.processor import onednn_multiplies_faster
from muse_adapter.ops.torch_private import has_onednn_linear, in_forward_mode, onednn_linear

# Products of two numbers, below which what is saved is lost around it.
MIN_PRODUCTS = 1 << 22


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute x @ weight^T + bias, as `torch.nn.functional.linear` does.

    Args:
        x: (..., D).
        weight: (O, D).
        bias: (O,); None: zeros.

    Returns:
        (..., O), in autocast's type where that is on.
    """
    if not _onednn_serves(x, weight, bias):
        return F.linear(x, weight, bias)
    if x.dim() == 2:
        return _multiply(x, weight, bias)
    return _multiply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


def _onednn_serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether it does for these arguments; what is traced is left to a compiler."""
    return (
        all(_is_plain(tensor) for tensor in (x, weight, bias) if tensor is not None)
        and values_can_be_asked(x)
        and not torch.jit.is_tracing()
        and onednn_multiplies_faster()
        and has_onednn_linear()
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not in_forward_mode()
        and x.dim() > 1
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and x.numel() * len(weight) >= MIN_PRODUCTS
        and (bias is None or bias.shape == weight.shape[:1])
    )


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is float32 in memory, and no subclass with operations of its own."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and tensor.dtype == torch.float32
        and tensor.device.type == "cpu"
        and tensor.layout == torch.strided
        and not tensor.is_nested
    )


class _OneDnn(torch.autograd.Function):
    """The map of rows; its gradients are such maps themselves, and so are theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        wanted = ctx.needs_input_grad
        ctx.save_for_backward(x if wanted[1] else None, weight if wanted[0] else None)
        # It reads every bias as if it were contiguous.
        bias = None if bias is None else bias.contiguous()
        return onednn_linear(_dense(x), _dense(weight), bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,), (x, weight) = grads, ctx.saved_tensors
        wanted = ctx.needs_input_grad
        return (
            linear(grad, weight.t()) if wanted[0] else None,
            linear(grad.t(), x.t()) if wanted[1] else None,
            grad.sum(0) if wanted[2] else None,
        )


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y: Tensor = _OneDnn.apply(x, weight, bias)
    return y


def _dense(matrix: Tensor) -> Tensor:
    """Copy what is neither contiguous nor a transposed matrix: oneDNN is slow with it."""
    return matrix if matrix.is_contiguous() or matrix.t().is_contiguous() else matrix.contiguous()
