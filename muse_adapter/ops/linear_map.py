"""Linear maps: torch's, or oneDNN's where torch's are the slower ones.

On an AMD EPYC with AVX-512 MKL, which torch takes for float32, reaches 105 GFLOP/s with one thread,
and oneDNN 240. With torch's instead, inference of the head over 3,060 tokens takes 1.40 times as
long with 1 thread and 1.41 times with 2, and a training step 1.45 and 1.37 times (`python -m
benchmarks.ablation`, 2 cores of an AMD EPYC with AVX-512, torch 2.13.0, 2026-11-29).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.checks import check_rank, check_tensor, exporting_to_onnx
from muse_adapter.ops.library import register
from muse_adapter.ops.processor import is_amd_with_avx512
from muse_adapter.ops.torch_private import (
    constant_when_compiled,
    has_onednn_linear,
    in_forward_mode,
    in_func_transform,
    onednn_linear,
)

# Products of two numbers, below which calling an operator costs what it saves.
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
    rows: Tensor = torch.ops.muse_adapter.linear(x.flatten(0, -2), weight, bias)
    return rows.unflatten(0, x.shape[:-1])


@constant_when_compiled
def onednn_is_faster() -> bool:
    """Whether oneDNN multiplies float32 faster than torch on this processor."""
    return is_amd_with_avx512() and has_onednn_linear()


def _onednn_serves(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    if (
        not onednn_is_faster()
        or not x.dtype == weight.dtype == torch.float32
        or x.device.type != "cpu"
        or torch.is_autocast_enabled("cpu")
        or x.dim() < 2
        or weight.dim() != 2
    ):
        return False
    if torch.compiler.is_compiling():  # sizes may be symbolic, and must not be branched on
        return not exporting_to_onnx()
    return (
        x.numel() * len(weight) >= MIN_PRODUCTS
        and not in_func_transform()
        and not in_forward_mode()
    )


def _run(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    _, inputs = check_rank("x", x, "rows", "D")
    outputs, _ = check_rank("weight", weight, "O", "D")
    check_tensor("x", x, None, ("x", x))
    check_tensor("weight", weight, (outputs, inputs), ("x", x))
    check_tensor("bias", bias, (outputs,), ("x", x))
    # An exported program may run elsewhere, or under autocast bring other types.
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if (
        not has_onednn_linear()
        or (x.dtype, x.device.type) != (torch.float32, "cpu")
        or 0 in (x.numel(), weight.numel())
    ):
        return F.linear(x, weight, bias).to(x.dtype)
    # It reads every bias as if it were contiguous.
    return onednn_linear(_dense(x), _dense(weight), None if bias is None else bias.contiguous())


def _dense(tensor: Tensor) -> Tensor:
    """Copy what is neither contiguous nor a transposed matrix: oneDNN is slow with it."""
    dense = tensor.is_contiguous() or tensor.t().is_contiguous()
    return tensor if dense else tensor.contiguous()


def _fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _differentiate(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        linear(grad, weight.t()) if wanted[0] else None,
        linear(grad.t(), x.t()) if wanted[1] else None,
        grad.sum(0) if wanted[2] else None,
    )


register(
    "linear",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    *(_run, _fake, _differentiate, _setup),
)
