"""Vectors of unit norm."""

from __future__ import annotations

import torch
from torch import Tensor


def unit(x: Tensor) -> Tensor:
    """Normalise vectors along the last axis, at any scale.

    Args:
        x: (..., D), floating point.

    Returns:
        (..., D) in float32, or float64 for float64; a zero vector stays zero, with zero gradient.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    # Divided by the largest entry first: squares neither overflow nor vanish. A positive factor
    # changes no direction, so it needs no gradient.
    largest = torch.linalg.vector_norm(wide.detach(), torch.inf, dim=-1, keepdim=True)
    scaled = wide / largest.masked_fill(largest == 0, torch.inf)
    norm = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / norm.masked_fill(norm == 0, torch.inf)
