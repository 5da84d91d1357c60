"""Inputs of MamFusion: valid tokens first, and of norm about 1."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.layers.sequence import valid_first


class Front(NamedTuple):
    """Sequences with their valid tokens in front.

    Attributes:
        tokens: (B, L, C), 0 behind the valid ones.
        lengths: (B,) valid tokens; 1 where there is none.
        real: Bool (B,), which have a valid token at all; None: all.
    """

    tokens: Tensor
    lengths: Tensor
    real: Tensor | None


def to_front(x: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Front:
    """Move the valid tokens of x (B, L, C) to the front; the mask is bool (B, L), or None."""
    x = x.to(dtype)
    if mask is None:
        return Front(x, torch.full((len(x),), x.shape[1], device=x.device), None)
    mask = mask.to(x.device)
    lengths = mask.sum(1)
    # `where`, never a product: what is masked may be NaN.
    tokens = valid_first(torch.where(mask[..., None], x, 0), mask)
    return Front(tokens, lengths.clamp(min=1), lengths > 0)


def keep_mask(lengths: Tensor, size: int) -> Tensor:
    """Return which of the first `size` tokens are valid, bool (B, size)."""
    return torch.arange(size, device=lengths.device) < lengths[:, None]


def normalise(x: Tensor) -> Tensor:
    """Divide vectors by their norm plus 1e-5, as the published code does; 0 stays 0."""
    return x / (torch.linalg.vector_norm(x, dim=-1, keepdim=True) + 1e-5)


def check_width(name: str, width: int, wanted: int) -> None:
    """Raise a ValueError if features do not have the width of the config."""
    if width != wanted:
        raise ValueError(f"{name} must have the width {wanted} of the config, got {width}")
