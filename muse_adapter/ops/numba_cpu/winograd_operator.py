"""Convolutions of maps as custom operators, which tracing does not look into.

The gradients are such convolutions themselves, and so are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.backend import by_name
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.library import register


def conv3x3(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Convolve maps in float32 or float64, both widths multiples of 16, see `muse_adapter.ops`."""
    y: Tensor = torch.ops.muse_adapter.conv3x3(x.permute(0, 2, 3, 1), weight, bias)
    return y.permute(0, 3, 1, 2)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    by_name("numba").require(x.device)  # an exported program may run elsewhere, or under autocast
    from muse_adapter.ops.numba_cpu.winograd import convolve

    outputs, *_ = check_rank("weight", weight, "O", "C", "3", "3")
    inputs = _check_maps(x, outputs)
    like = "x", x
    check_tensor("weight", weight, (outputs, inputs, 3, 3), like)
    check_tensor("bias", bias, (outputs,), like)
    wide = state_dtype(x)
    shift = None if bias is None else bias.to(wide)
    with without_autocast(x.device.type):
        return convolve(x.to(wide), weight.to(wide), shift).to(x.dtype)


def _check_maps(x: Tensor, outputs: int) -> int:
    """Refuse maps or widths that the kernels have not; return the inputs' width."""
    from muse_adapter.ops.numba_cpu.simd import WIDTH

    _, height, width, inputs = check_rank("x", x, "n", "H", "W", "C")
    check_tensor("x", x, None, ("x", x))
    if inputs % WIDTH or outputs % WIDTH or 0 in (height, width, inputs, outputs):
        raise ValueError(
            f"x must have shape (n, H, W, C) with no size 0, and C and O must be multiples of "
            f"{WIDTH}, got {tuple(x.shape)} and O = {outputs}"
        )
    return inputs


def _forward_fake(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(*x.shape[:3], weight.shape[0])


def _forward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _ = inputs
    ctx.save_for_backward(x, weight)


def _differentiate_forward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _transposed(grad, weight) if wanted[0] else None,
        torch.ops.muse_adapter.conv3x3_weight(x, grad) if wanted[1] else None,
        grad.sum((0, 1, 2)) if wanted[2] else None,
    )


def _transposed(grad: Tensor, weight: Tensor) -> Tensor:
    """Take a gradient back through the convolution by `weight`, to its input."""
    mirrored = weight.flip(2, 3).transpose(0, 1)
    result: Tensor = torch.ops.muse_adapter.conv3x3(grad, mirrored, None)
    return result


def _weight(x: Tensor, grad: Tensor) -> Tensor:
    by_name("numba").require(x.device)
    from muse_adapter.ops.numba_cpu.winograd import weight_gradient

    *_, outputs = check_rank("grad", grad, "n", "H", "W", "O")
    _check_maps(x, outputs)
    check_tensor("grad", grad, (*x.shape[:3], outputs), ("x", x))
    wide = state_dtype(x)
    with without_autocast(x.device.type):
        return weight_gradient(x.to(wide), grad.to(wide)).to(x.dtype)


def _weight_fake(x: Tensor, grad: Tensor) -> Tensor:
    return x.new_empty(grad.shape[3], x.shape[3], 3, 3)


def _weight_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_weight(ctx: Any, grad_weight: Tensor) -> tuple[Tensor | None, ...]:
    x, grad = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return (
        _transposed(grad, grad_weight) if wanted[0] else None,
        torch.ops.muse_adapter.conv3x3(x, grad_weight, None) if wanted[1] else None,
    )


register(
    "conv3x3",
    "(Tensor x, Tensor weight, Tensor? bias) -> Tensor",
    *(_forward, _forward_fake, _differentiate_forward, _forward_setup),
)
register(
    "conv3x3_weight",
    "(Tensor x, Tensor grad) -> Tensor",
    *(_weight, _weight_fake, _differentiate_weight, _weight_setup),
)
