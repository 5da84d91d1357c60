"""Inputs of both directions of a mixer's scan with its convolutions, its results and gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.correctness import require_agreement
from benchmarks.gpu.part import Options
from muse_adapter.ops import Direction, bidirectional_scan, causal_conv1d_silu

STATES, TAPS = 16, 4
SIDES = ("forward", "backward")
BOUND = 2e-2  # of bfloat16 results and gradients, whose last place is 4e-3


class Sizes(NamedTuple):
    """Batch, length L and channels E."""

    batch: int
    length: int
    channels: int

    def __str__(self) -> str:
        return f"B={self.batch}, L={self.length:,}, E={self.channels}, S={STATES}, bfloat16"


PAPER, ONE_VIDEO, TINY = Sizes(16, 3060, 512), Sizes(1, 3060, 512), Sizes(1, 5, 32)


def sizes(options: Options) -> Sizes:
    """Return the sizes of the paper's training step, or tiny ones."""
    return TINY if options.tiny else PAPER


def inputs(size: Sizes, device: str) -> dict[str, Tensor]:
    """Make what the mixer hands to the convolutions and the scan, all wanting gradients."""
    batch, length, channels = size

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=torch.bfloat16)

    given = {"x": normal(batch, length, channels), "z": normal(batch, length, channels)}
    for side in SIDES:
        given |= {
            f"{side} delta": normal(batch, length, channels),
            f"{side} B": normal(batch, length, STATES),
            f"{side} C": normal(batch, length, STATES),
            f"{side} A": -torch.arange(1.0, STATES + 1, device=device).expand(channels, -1).clone(),
            f"{side} D": torch.ones(channels, device=device),
            f"{side} delta_bias": torch.full((channels,), -4.0, device=device),
            f"{side} weight": torch.randn(channels, 1, TAPS, device=device) / 2,
            f"{side} bias": torch.zeros(channels, device=device),
        }
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


def convolutions(given: Mapping[str, Tensor], backend: str) -> tuple[Tensor, ...]:
    """Return what the scan reads in each direction."""
    weights = [(given[f"{side} weight"], given[f"{side} bias"]) for side in SIDES]
    return causal_conv1d_silu(given["x"], weights, backend=backend)


def output(given: Mapping[str, Tensor], backend: str) -> Tensor:
    """Return the gated sum of both scans."""
    names = ("delta", "A", "B", "C", "D", "delta_bias")
    forward, backward = (
        Direction(y, *(given[f"{side} {name}"] for name in names))
        for side, y in zip(SIDES, convolutions(given, backend), strict=True)
    )
    return bidirectional_scan(forward, backward, given["z"], backend=backend)


def step(given: Mapping[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Return output and gradients."""
    y = output(given, backend)
    gradients = torch.autograd.grad(y.sum(), list(given.values()))
    return {"y": y.detach(), **dict(zip(given, gradients, strict=True))}


def expected(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `step` should, by the `torch` backend in float32."""
    wide = {name: tensor.detach().float().requires_grad_() for name, tensor in given.items()}
    return step(wide, "torch")


def check(size: Sizes, device: str) -> None:
    """Compare results in bfloat16 with the `torch` backend's in float32, on two videos.

    Raises:
        SystemExit: They differ.
    """
    given = inputs(size._replace(batch=min(2, size.batch)), device)
    require_agreement(step(given, "triton"), expected(given), "backend triton", BOUND)
