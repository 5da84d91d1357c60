"""Both directions of a mixer: what each reads, and the plain way to join them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class Direction(NamedTuple):
    """What one direction of a bidirectional scan reads, in the layout that linear layers give.

    Attributes:
        x: (batch, L, E) inputs, after convolution and SiLU.
        delta: (batch, L, E) step sizes before bias and softplus.
        A: (E, S), negative.
        B, C: (batch, L, S).
        D: (E,) skip connection.
        delta_bias: (E,).
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    delta_bias: Tensor


def scan_in_turn(
    scan: Callable[..., tuple[Tensor, Tensor]],
    forward: Direction,
    backward: Direction | None,
    z: Tensor,
    *,
    lengths: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """`muse_adapter.ops.bidirectional_scan`, one direction after the other.

    Args:
        scan: of a backend, see `muse_adapter.ops.dispatch`.
        forward, backward, z, lengths, positions: as there.
    """
    total: Tensor | None = None
    for direction, reverse in ((forward, False), (backward, True)):
        if direction is None:
            continue
        x, delta, A, B, C, D, delta_bias = direction
        y, _ = scan(
            *(x, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, delta_bias),
            delta_softplus=True,
            reverse=reverse,
            lengths=lengths,
        )
        if positions is not None:
            y = y.gather(1, positions.unsqueeze(-1).expand(-1, -1, y.shape[-1]))
        total = y if total is None else total + y
    assert total is not None
    return (total * F.silu(z.to(total.dtype))).to(z.dtype)
