"""Gradients of B and C: programs write parts of them, which are then summed in a fixed order."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor

from muse_adapter.ops.triton_gpu.launch import cdiv

if TYPE_CHECKING:
    from muse_adapter.ops.triton_gpu.function import Gains, Plan


class Gradients(NamedTuple):
    """The gradients of all sides, in as few tensors as hold them.

    Attributes:
        rows: Of x of each side, then of delta of each side, (batch, L, E).
        gains: Of B and C of each side, as they were given; one tensor of all where they are alike.
        weights: (directions, E S + 2 E), of A (E, S), D and bias.
        initial: (directions, batch, S, E) or None.
    """

    rows: list[Tensor]
    gains: Tensor | list[Tensor]
    weights: Tensor
    initial: Tensor | None


def gain_parts(plan: Plan, segments: int) -> Tensor | list[Tensor]:
    """Memory for the parts of the gradients of B and C, which are summed over the first dimension.

    No two programs write to one place, and the sum has a fixed order.

    Returns:
        As `Gradients.gains`, each with its parts in front.
    """
    shapes = [
        (segments * plan.batch, plan.S, plan.E)
        if gains.constant
        else (cdiv(gains.channels, plan.block), *gains.tensors[side].shape)
        for gains, side in _in_order(plan)
    ]
    if plan.stacked:
        return plan.parts(len(shapes), *shapes[0])
    return [plan.parts(*shape) for shape in shapes]


def summed(plan: Plan, parts: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Sum the parts of the gradients of B and C, in the types of these."""
    if isinstance(parts, Tensor):
        sums = parts.sum(1)
        sums = sums.transpose(1, 2)[:, None, None] if plan.B.constant else sums
        return sums.to(plan.gain_types[0]).contiguous()
    return [
        (part.sum(0).t()[None, None] if gains.constant else part.sum(0)).to(dtype).contiguous()
        for part, (gains, _), dtype in zip(parts, _in_order(plan), plan.gain_types, strict=True)
    ]


def _in_order(plan: Plan) -> list[tuple[Gains, int]]:
    """B and C of each side."""
    return [(gains, side) for side in range(plan.count) for gains in (plan.B, plan.C)]
