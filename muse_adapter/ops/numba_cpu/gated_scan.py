"""Inference: both directions, their sum and the gate in one pass less over memory each."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from muse_adapter.ops.bidirectional import Direction
from muse_adapter.ops.dispatch import require
from muse_adapter.ops.library import register


def serves(directions: Sequence[Direction], z: Tensor) -> bool:
    """Whether `gated_scan` can do it: no gradient is wanted, and z has the type of the states."""
    tensors = [z, *(tensor for direction in directions for tensor in direction)]
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors):
        return False
    return (
        z.dtype in (torch.float32, torch.float64)
        and all(direction.x.dtype == z.dtype for direction in directions)
        and z.shape[2] % 16 == 0
    )


def gated_scan(directions: Sequence[Direction], z: Tensor, lengths: Tensor | None) -> Tensor:
    """`muse_adapter.ops.bidirectional_scan` at all positions, without a gradient."""
    ahead, *back = (list(direction) for direction in directions)
    run = torch.ops.muse_adapter.gated_scan
    return run(ahead, back[0] if back else [], z, lengths)


def _run(ahead: list[Tensor], back: list[Tensor], z: Tensor, lengths: Tensor | None) -> Tensor:
    require("numba", z.device)  # an exported program may run elsewhere
    from muse_adapter.ops.numba_cpu.function import beside, prepare, run_gated

    calls = []
    for tensors, reverse in ((ahead, False), (back, True)):
        if tensors:
            x, delta, A, B, C, D, bias = tensors
            gains = B.unsqueeze(2), C.unsqueeze(2)
            calls.append(prepare(x, delta, A, *gains, D, bias, lengths, True, reverse))
    return run_gated(calls, beside(z))


def _fake(ahead: list[Tensor], back: list[Tensor], z: Tensor, lengths: Tensor | None) -> Tensor:
    return z.new_empty(z.shape)


register(
    "gated_scan",
    "(Tensor[] ahead, Tensor[] back, Tensor z, Tensor? lengths) -> Tensor",
    *(_run, _fake),
)
