"""The gate behind a bidirectional scan as custom operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.backend import by_name
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.inputs import gradient_wanted
from muse_adapter.ops.library import refuse_second, register


def gated(z: Tensor, positions: Tensor | None, y: list[Tensor]) -> Tensor:
    """Sum the directions, times SiLU(z), at the positions; differentiable once."""
    return torch.ops.muse_adapter.triton_gate(z, positions, y, gradient_wanted([z, *y]))[0]


def _gate(
    z: Tensor, positions: Tensor | None, y: list[Tensor], save: bool
) -> tuple[Tensor, Tensor]:
    by_name("triton").require(z.device)
    from muse_adapter.ops.triton_gpu import gate

    batch, places, channels = check_rank("z", z, "batch", "P", "E")
    like = "z", z
    check_tensor("z", z, None, like)
    check_tensor("positions", positions, (batch, places), like, integer=True)
    if len(y) not in (1, 2):
        raise ValueError(f"y must be of one direction or two, got {len(y)}")
    for tensor in y:
        _, length, _ = check_rank("y", tensor, "batch", "L", "E")
        length = places if positions is None else length
        check_tensor("y", tensor, (batch, length, channels), like)
        if tensor.dtype != y[0].dtype:
            raise TypeError(f"y must be of one type, got {y[0].dtype} and {tensor.dtype}")
    return gate.run_forward(z, positions, y, save)


def _gate_fake(
    z: Tensor, positions: Tensor | None, y: list[Tensor], save: bool
) -> tuple[Tensor, Tensor]:
    return z.new_empty(z.shape), z.new_empty(z.shape if save else (0,))


def _setup_gate(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    z, positions, y, ctx.save = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(z, output[1], positions)
    ctx.lengths, ctx.wide = [tensor.shape[1] for tensor in y], y[0].dtype == torch.float64


def _differentiate_gate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    if not ctx.save:
        raise RuntimeError("muse_adapter::triton_gate has a gradient only with save=True")
    z, total, positions = ctx.saved_tensors
    dz, dy = torch.ops.muse_adapter.triton_gate_backward(grad, z, total, ctx.wide)
    if positions is None:
        return dz, None, [dy] * len(ctx.lengths), None
    videos = torch.arange(len(z), device=z.device).unsqueeze(1)
    # Adds where a position is wanted twice; in a fixed order, unlike `scatter_add`.
    placed = [
        dy.new_zeros(len(z), length, z.shape[2]).index_put((videos, positions), dy, accumulate=True)
        for length in ctx.lengths
    ]
    return dz, None, placed, None


def _gate_backward(grad: Tensor, z: Tensor, total: Tensor, wide: bool) -> tuple[Tensor, Tensor]:
    by_name("triton").require(z.device)
    from muse_adapter.ops.triton_gpu import gate

    shape, like = check_rank("z", z, "batch", "P", "E"), ("z", z)
    for name, tensor in (("z", z), ("grad", grad), ("total", total)):
        check_tensor(name, tensor, shape, like)
    return gate.run_backward(grad, z, total, torch.float64 if wide else torch.float32)


def _gate_backward_fake(
    grad: Tensor, z: Tensor, total: Tensor, wide: bool
) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if wide else torch.float32
    return z.new_empty(z.shape), z.new_empty(z.shape, dtype=dtype)


register(
    "triton_gate",
    "(Tensor z, Tensor? positions, Tensor[] y, bool save) -> (Tensor, Tensor)",
    *(_gate, _gate_fake, _differentiate_gate, _setup_gate),
)
register(
    "triton_gate_backward",
    "(Tensor grad, Tensor z, Tensor total, bool wide) -> (Tensor, Tensor)",
    *(_gate_backward, _gate_backward_fake, refuse_second("the triton backend has")),
)
