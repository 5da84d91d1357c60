"""The largest of many inner products: what they are chosen from, and how."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_ROWS = 2**14  # vectors in float64 at once: of many equal ones all are in doubt


class NotFiniteError(ValueError):
    """Vectors, or scores of them, hold NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("vectors must be finite, with finite norms, got NaN or infinity")


class TopProductsInputs(NamedTuple):
    """Arguments of `muse_adapter.ops.top_products`, checked.

    Attributes:
        vectors: (N, D).
        queries: (A, D), float64 for float64 vectors, else float32.
        scores: (A, N).
        error: (N,) float32, of the scores; or in their type.
        k: How many are wanted, 1 to N.
    """

    vectors: Tensor
    queries: Tensor
    scores: Tensor
    error: Tensor
    k: int

    @torch.no_grad()
    def compose(self) -> tuple[Tensor, Tensor]:
        """Choose by operators of torch."""
        scores, error = self.scores.double(), self.error.double()
        least = (scores - error).topk(self.k, dim=1).values  # NaN comes first
        if not bool(least.isfinite().all()):
            raise NotFiniteError
        in_doubt = scores + error >= least[:, -1:]
        parts = [self._best(*pair) for pair in zip(self.queries.double(), in_doubt, strict=True)]
        best, positions = (torch.stack(results) for results in zip(*parts, strict=True))
        return best, positions

    def _best(self, query: Tensor, in_doubt: Tensor) -> tuple[Tensor, Tensor]:
        """Return the k largest products of one query, in float64, and their positions."""
        # By position, so that the stable sort leaves equal products in this order.
        positions = in_doubt.nonzero()[:, 0]
        # No matrix products, whose rounding depends on the number of rows.
        parts = (self.vectors[rows].double().mul_(query).sum(1) for rows in positions.split(_ROWS))
        exact = torch.cat([*parts]).to(self.queries.dtype)
        if not bool(exact.isfinite().all()):
            raise NotFiniteError
        best, order = exact.sort(descending=True, stable=True)
        return best[: self.k], positions[order[: self.k]]
