"""Checks of the inputs of losses, and sums over some entries of a matrix."""

from __future__ import annotations

import torch
from torch import Tensor


def as_scores(name: str, scores: Tensor) -> Tensor:
    """Bring scores (texts, videos) to float32 at least.

    Raises:
        TypeError: They are not a floating-point tensor.
        ValueError: They are not a matrix, or empty.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        kind = scores.dtype if isinstance(scores, Tensor) else type(scores).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if scores.dim() != 2 or 0 in scores.shape:
        raise ValueError(
            f"{name} must have shape (texts, videos), neither of them 0, got {tuple(scores.shape)}"
        )
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def as_indices(name: str, indices: Tensor, rows: int, columns: int | None = None) -> Tensor:
    """Bring indices, one for each row, to int64.

    Args:
        name: The name that messages use.
        indices: (rows,) integers.
        rows: Their number.
        columns: The indices must be below it, which is checked on the CPU in eager mode only; None:
            any.

    Returns:
        (rows,) int64.

    Raises:
        TypeError: They are not an integer tensor.
        ValueError: They have another shape, or are out of range.
    """
    integer = isinstance(indices, Tensor) and not (
        indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool
    )
    if not integer:
        kind = indices.dtype if isinstance(indices, Tensor) else type(indices).__name__
        raise TypeError(f"{name} must be an integer tensor, got {kind}")
    if tuple(indices.shape) != (rows,):
        raise ValueError(f"{name} must have shape ({rows},), got {tuple(indices.shape)}")
    eager = indices.device.type == "cpu" and not torch.compiler.is_compiling()
    if columns is not None and eager and rows:
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high >= columns:
            wrong = low if low < 0 else high
            raise ValueError(f"{name} must be from 0 to {columns - 1}, got {wrong}")
    return indices.long()


def own_pairs(labels: Tensor, scores: Tensor) -> Tensor:
    """Return which entries of scores (Q, V) are of a query and its own video, bool (Q, V)."""
    return labels[:, None] == torch.arange(scores.shape[1], device=scores.device)


def logsumexp_of(scores: Tensor, keep: Tensor, dim: int) -> Tensor:
    """Compute log sum exp over the entries to keep; the lowest finite number, about, if none is."""
    # With -infinity, the gradient of a sum over nothing would be NaN.
    return scores.masked_fill(~keep, torch.finfo(scores.dtype).min).logsumexp(dim)


def mean_of(values: Tensor, keep: Tensor, dim: int = 0) -> Tensor:
    """Average the values to keep; 0 if there are none."""
    kept = torch.where(keep, values, 0)
    return kept.sum(dim) / keep.sum(dim).clamp(min=1)
