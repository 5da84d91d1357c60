"""A Mamba mixer from its input to its gated output, where no gradient is wanted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.ops.dispatch import choose


class MambaDirection(NamedTuple):
    """The weights of one direction of a mixer with E inner channels.

    Attributes:
        conv: (E, 1, taps), of the short convolution.
        conv_bias: (E,).
        x_proj: (R + 2 S, E), to low-rank step sizes, B and C.
        dt_proj: (E, R), from there to step sizes.
        dt_bias: (E,).
        A: (E, S), negative.
        D: (E,), skip connection.
    """

    conv: Tensor
    conv_bias: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    A: Tensor
    D: Tensor


def mamba_inference(
    tokens: Tensor,
    in_proj: Tensor,
    directions: Sequence[MambaDirection],
    *,
    lengths: Tensor | None = None,
    positions: Tensor | None = None,
    end: int | None = None,
    backend: str | None = None,
) -> Tensor | None:
    """What `BiMamba.mix` computes, by a backend that does better than one part after the other.

    Args:
        tokens: (batch, L, D).
        in_proj: (2 E, D), whose halves make x and the gate z.
        directions: the forward direction, then perhaps the one in which time runs backwards.
        lengths: (batch,) valid tokens of each video, standing in front; None: all of them.
        positions: (batch, P) integers, the positions wanted; None: all.
        end: exclusive upper bound of `positions`, not checked; None: anywhere.
        backend: name of a backend; None chooses.

    Returns:
        (batch, L, E), or (batch, P, E) at the positions, in the type of the tokens. Behind
        `lengths` it is zero. None where a gradient is wanted, under autocast, and where the backend
        has no such way.

    Raises:
        ValueError: an unknown backend.
        RuntimeError: the backend asked for cannot run.
    """
    run = getattr(choose(tokens.device, backend), "mamba_inference", None)
    tensors = [tokens, in_proj, *(tensor for direction in directions for tensor in direction)]
    if (
        run is None
        or torch.is_autocast_enabled(tokens.device.type)
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    ):
        return None
    if positions is None or end is None:
        end = tokens.shape[1]
    result: Tensor | None = run(tokens, in_proj, directions, lengths, positions, end)
    return result
