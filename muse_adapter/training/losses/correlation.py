"""EERCF's constraint on the correlation of texts and videos."""

from __future__ import annotations

import torch
from torch import Tensor


def pearson_constraint(
    x: Tensor, y: Tensor, *, diagonal: float = 0.14, off_diagonal: float = 0.0
) -> Tensor:
    """Ask each dimension of texts to correlate over the batch with the same one of videos.

        c    = zx^T zy / B, zx = (x - mean) / std over the batch, likewise zy
        loss = diagonal * sum over i of (c_ii - 1)^2 + off_diagonal * sum over i != j of c_ij^2

    As published, the standard deviations divide by B - 1 and `c` by B, so `c` is (B - 1) / B times
    Pearson's correlation, and equal inputs cost `diagonal * D / B**2`.

    Args:
        x: (B, D), floating point.
        y: (B, D), row i of the same pair.
        diagonal: Weight of the diagonal.
        off_diagonal: Weight of the rest of the matrix.

    Returns:
        Scalar in float32, or float64. A dimension that is constant over the batch, such as every
        dimension of a batch of one, correlates with nothing and gets no gradient.

    Raises:
        ValueError: The shapes are not (B, D), are empty, or differ.
    """
    if x.dim() != 2 or 0 in x.shape or x.shape != y.shape:
        raise ValueError(
            "x and y must have one shape (B, D), neither of them 0, got "
            f"{tuple(x.shape)} and {tuple(y.shape)}"
        )
    x, y = _standardised(x), _standardised(y)
    with torch.autocast(x.device.type, enabled=False):
        if not off_diagonal:
            return diagonal * ((x * y).mean(0) - 1).square().sum()
        correlation = x.T @ y / len(x)  # (D, D)
    own = correlation.diagonal()
    others = correlation.square().sum() - own.square().sum()
    return diagonal * (own - 1).square().sum() + off_diagonal * others


def _standardised(x: Tensor) -> Tensor:
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centred = x - x.mean(0)
    # The mean of equal numbers may differ from them by rounding.
    rounding = 4 * torch.finfo(x.dtype).eps * x.detach().abs().amax(0)
    constant = centred.detach().abs().amax(0) <= rounding
    # Squares of tiny or huge numbers leave the range; a positive factor changes no correlation.
    scaled = centred / centred.detach().abs().amax(0).masked_fill(constant, torch.inf)
    variance = scaled.square().sum(0) / max(1, len(x) - 1)
    return scaled / variance.masked_fill(constant, torch.inf).sqrt()
