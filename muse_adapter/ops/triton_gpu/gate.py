"""The end of a bidirectional scan in one pass: sum of the directions, times SiLU(z), as wanted."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from muse_adapter.ops.triton_gpu.elementary import VARYING, sigmoid

WIDTH = 512  # channels that a program takes at once
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(**VARYING)
def gate_forward(
    y0, y1, z, positions, out, total, L0, L1, P,
    E: tl.constexpr, BOTH: tl.constexpr, PLACED: tl.constexpr, KEPT: tl.constexpr,
    WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """(y0 + y1) SiLU(z) of one video at one place.

    Args:
        y0, y1: (batch, L, E); y1 is read with BOTH only.
        z, out, total: (batch, P, E); with KEPT `total` receives the sum.
        positions: (batch, P), read with PLACED only; else place p is position p.
    """
    place, video = tl.program_id(0), tl.program_id(1).to(tl.int64)
    e = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    live = e < E
    row = (video * P + place) * E + e
    position = place.to(tl.int64)
    if PLACED:
        position = tl.load(positions + video * P + place)
    y = tl.load(y0 + (video * L0 + position) * E + e, mask=live, other=0.0).to(TYPE)
    if BOTH:
        y += tl.load(y1 + (video * L1 + position) * E + e, mask=live, other=0.0).to(TYPE)
    gate = tl.load(z + row, mask=live, other=0.0).to(TYPE)
    tl.store(out + row, y * gate * sigmoid(gate), mask=live)
    if KEPT:
        tl.store(total + row, y, mask=live)


@triton.jit(**VARYING)
def gate_backward(
    dout, z, total, dy, dz, P, E: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr
):
    """Gradients of the sum of the directions and of z, all (batch, P, E)."""
    place, video = tl.program_id(0), tl.program_id(1).to(tl.int64)
    e = tl.program_id(2) * WIDTH + tl.arange(0, WIDTH)
    live = e < E
    row = (video * P + place) * E + e
    above = tl.load(dout + row, mask=live, other=0.0).to(TYPE)
    gate = tl.load(z + row, mask=live, other=0.0).to(TYPE)
    y = tl.load(total + row, mask=live, other=0.0).to(TYPE)
    share = sigmoid(gate)
    tl.store(dy + row, above * gate * share, mask=live)
    tl.store(dz + row, above * y * share * (1.0 + gate * (1.0 - share)), mask=live)


class Gate(torch.autograd.Function):
    """(y0 + y1) SiLU(z) at the wanted positions, in the type of z; differentiable once.

    The gradient of z reads the sum of the directions as it was kept, in the type of z.

    Arguments: whether a backward pass may come, z (batch, P, E), positions (batch, P) or None,
    y (batch, L, E) of each direction.
    """

    @staticmethod
    def forward(ctx: Any, keep: bool, z: Tensor, positions: Tensor | None, *y: Tensor) -> Tensor:
        z = z.contiguous()
        out = torch.empty_like(z)
        total = torch.empty_like(z) if keep else out
        with torch.cuda.device_of(z):  # kernels are launched on the current device
            gate_forward[_grid(z)](
                *(y[0], y[-1], z, z if positions is None else positions.contiguous(), out, total),
                *(y[0].shape[1], y[-1].shape[1], z.shape[1]),
                E=z.shape[2],
                BOTH=len(y) > 1,
                PLACED=positions is not None,
                KEPT=keep,
                **_meta(z, y[0].dtype),
            )
        if keep:
            ctx.save_for_backward(z, total, positions)
            ctx.lengths = [tensor.shape[1] for tensor in y]
            ctx.dtype = y[0].dtype
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gradients = _GateGradients.apply(grad, ctx.lengths, ctx.dtype, *ctx.saved_tensors)
        return None, *gradients


class _GateGradients(torch.autograd.Function):
    """The backward pass as a function of its own, so that a derivative of it is refused by name."""

    @staticmethod
    def forward(
        ctx: Any,
        grad: Tensor,
        lengths: list[int],
        dtype: torch.dtype,
        z: Tensor,
        total: Tensor,
        positions: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        dz, dy = torch.empty_like(z), torch.empty_like(z, dtype=dtype)
        with torch.cuda.device_of(z):
            gate_backward[_grid(z)](
                grad.contiguous(), z, total, dy, dz, z.shape[1], E=z.shape[2], **_meta(z, dtype)
            )
        if positions is None:
            return dz, None, *[dy for _ in lengths]
        videos = torch.arange(len(z), device=z.device).unsqueeze(1)
        # Adds where a position is wanted twice; in a fixed order, unlike `scatter_add`.
        return (
            dz,
            None,
            *[
                dy.new_zeros(len(z), length, z.shape[2]).index_put_(
                    (videos, positions), dy, accumulate=True
                )
                for length in lengths
            ],
        )

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        raise RuntimeError(
            "the triton backend of the scan has no second derivative: use backend='reference'"
        )


def _grid(z: Tensor) -> tuple[int, int, int]:
    batch, places, channels = z.shape
    return places, batch, triton.cdiv(channels, _width(channels))


def _width(channels: int) -> int:
    return min(WIDTH, triton.next_power_of_2(channels))


def _meta(z: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    wide = tl.float64 if dtype == torch.float64 else tl.float32
    return {"WIDTH": _width(z.shape[2]), "TYPE": wide, **OPTIONS}
