"""The end of a bidirectional scan in one pass: sum of the directions, times SiLU(z), as wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from muse_adapter.ops.triton_gpu.elementary import VARYING, checked_grid, sigmoid
from muse_adapter.ops.triton_gpu.launch import cdiv, launch, next_power_of_2

WIDTH = 512  # channels that a program takes at once
OPTIONS = {"num_warps": 4, "enable_fp_fusion": True}


@triton.jit(**VARYING)
def gate_forward(
    y0, y1, z, positions, out, total, L0, L1, P,
    E: tl.constexpr, BOTH: tl.constexpr, PLACED: tl.constexpr, SAVED: tl.constexpr,
    WIDTH: tl.constexpr, TYPE: tl.constexpr,
):  # fmt: skip
    """(y0 + y1) SiLU(z) of one video at one place.

    Args:
        y0, y1: (batch, L, E); y1 is read with BOTH only.
        z, out, total: (batch, P, E); with SAVED `total` receives the sum.
        positions: (batch, P), read with PLACED only; else place p is position p.
    """
    place, video = tl.program_id(0) % P, (tl.program_id(0) // P).to(tl.int64)
    e = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    live = e < E
    row = (video * P + place) * E + e
    position = place.to(tl.int64)
    if PLACED:
        position = tl.load(positions + video * P + place)
    # A position that no direction has reads nothing: it must not reach another video.
    inside = live & (e < tl.where((position >= 0) & (position < L0), E, 0))
    y = tl.load(y0 + (video * L0 + position) * E + e, mask=inside, other=0.0).to(TYPE)
    if BOTH:
        inside = live & (e < tl.where((position >= 0) & (position < L1), E, 0))
        y += tl.load(y1 + (video * L1 + position) * E + e, mask=inside, other=0.0).to(TYPE)
    gate = tl.load(z + row, mask=live, other=0.0).to(TYPE)
    tl.store(out + row, y * gate * sigmoid(gate), mask=live)
    if SAVED:
        tl.store(total + row, y, mask=live)


@triton.jit(**VARYING)
def gate_backward(
    dout, z, total, dy, dz, P, E: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr
):
    """Gradients of the sum of the directions and of z, all (batch, P, E)."""
    place, video = tl.program_id(0) % P, (tl.program_id(0) // P).to(tl.int64)
    e = tl.program_id(1) * WIDTH + tl.arange(0, WIDTH)
    live = e < E
    row = (video * P + place) * E + e
    above = tl.load(dout + row, mask=live, other=0.0).to(TYPE)
    gate = tl.load(z + row, mask=live, other=0.0).to(TYPE)
    y = tl.load(total + row, mask=live, other=0.0).to(TYPE)
    share = sigmoid(gate)
    tl.store(dy + row, above * gate * share, mask=live)
    tl.store(dz + row, above * y * share * (1.0 + gate * (1.0 - share)), mask=live)


def run_forward(
    z: Tensor, positions: Tensor | None, y: Sequence[Tensor], save: bool
) -> tuple[Tensor, Tensor]:
    """(y0 + y1) SiLU(z) at the wanted positions, and the sum of the directions.

    Args:
        z: (batch, P, E).
        positions: (batch, P), or None: all.
        y: (batch, L, E) of each direction.
        save: whether the sum is wanted, in the type of z as the gradient reads it; else it is
            empty.
    """
    z, y = z.contiguous(), [tensor.contiguous() for tensor in y]
    out = torch.empty_like(z)
    total = torch.empty_like(z) if save else z.new_empty(0)
    with torch.cuda.device_of(z):  # kernels are launched on the current device
        launch(
            *(gate_forward, _grid(z), OPTIONS),
            (
                *(y[0], y[-1], z, z if positions is None else positions.contiguous(), out),
                total if save else out,
            ),
            (y[0].shape[1], y[-1].shape[1], z.shape[1]),
            E=z.shape[2],
            BOTH=len(y) > 1,
            PLACED=positions is not None,
            SAVED=save,
            **_meta(z, y[0].dtype),
        )
    return out, total


def run_backward(
    grad: Tensor, z: Tensor, total: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Gradients of z, and of the sum of the directions (batch, P, E) in `dtype`."""
    z, total = z.contiguous(), total.contiguous()
    dz, dy = torch.empty_like(z), torch.empty_like(z, dtype=dtype)
    with torch.cuda.device_of(z):
        launch(
            *(gate_backward, _grid(z), OPTIONS),
            *((grad.contiguous(), z, total, dy, dz), (z.shape[1],)),
            E=z.shape[2],
            **_meta(z, dtype),
        )
    return dz, dy


def _grid(z: Tensor) -> tuple[int, ...]:
    """Programs: places of all videos, of which only the first axis holds enough; channels."""
    batch, places, channels = z.shape
    return checked_grid(places * batch, cdiv(channels, _width(channels)))


def _width(channels: int) -> int:
    return min(WIDTH, next_power_of_2(channels))


def _meta(z: Tensor, dtype: torch.dtype) -> dict[str, Any]:
    wide = tl.float64 if dtype == torch.float64 else tl.float32
    return {"WIDTH": _width(z.shape[2]), "TYPE": wide}
