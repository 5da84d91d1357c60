"""The largest of many inner products: what they are chosen from, and how."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

# Candidates beyond k that are looked at first; more, if the errors leave more in doubt.
_SPARE = 32


class NotFiniteError(ValueError):
    """Stored vectors hold NaN or infinity."""

    def __init__(self) -> None:
        super().__init__("vectors must be finite, with finite norms, got NaN or infinity")


class TopProductsInputs(NamedTuple):
    """Arguments of `muse_adapter.ops.top_products`, checked.

    Attributes:
        vectors: (N, D).
        queries: (A, D) float64.
        scores: (A, N), the inner products, those of a query times any number, up to `error`.
        error: The largest error of a score.
        k: How many are wanted, 1 to N.
    """

    vectors: Tensor
    queries: Tensor
    scores: Tensor
    error: float
    k: int

    def compose(self) -> tuple[Tensor, Tensor]:
        """Choose by operators of torch."""
        # By position, so that the stable sort leaves equal scores in this order.
        candidates = self._in_doubt().sort(1).values
        # No matrix products, whose rounding depends on the number of rows.
        sums = [
            self.vectors.index_select(0, positions).double().mul_(query).sum(1)
            for positions, query in zip(candidates, self.queries, strict=True)
        ]
        exact = torch.stack(sums).to(torch.promote_types(self.vectors.dtype, torch.float32))
        exact, order = exact.sort(dim=1, descending=True, stable=True)
        return exact[:, : self.k], candidates.gather(1, order[:, : self.k])

    def _in_doubt(self) -> Tensor:
        """Return the positions (A, k or more) of what may be among the k best."""
        scores, k, size = self.scores, self.k, self.scores.shape[1]
        best, index = scores.topk(min(k + _SPARE, size), dim=1)
        rows = best.tolist()  # Python's numbers hold differences exactly
        if not all(math.isfinite(row[0]) and math.isfinite(row[k - 1]) for row in rows):
            raise NotFiniteError  # NaN comes first
        rest = [row[k - 1 :] for row in rows]  # the k-th and those after it
        spare = max(sum(score >= row[0] - 2 * self.error for score in row) for row in rest) - 1
        count = k + spare
        if count == best.shape[1] < size:  # there may be more
            lowest = best[:, k - 1, None].double() - 2 * self.error
            count = int((scores >= lowest).sum(1).amax())
            index = scores.topk(count, dim=1).indices
        return index[:, :count]
