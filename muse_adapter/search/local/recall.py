"""Exact search over vectors that grow: what was prepared for the earlier ones is kept."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_adapter.retrieval import ExactRecall


class GrowingRecall:
    """Search the rows of a matrix that was extended again and again.

    `ExactRecall` reads all vectors once when it is made, unless it is given a bound on their norms.
    So there is one for each range of rows, and ranges are joined when one is no longer than half of
    the one before: their number grows with the logarithm of the rows.

    Args:
        vectors: (N, D), finite, N at least 1.
        earlier: The recall of a matrix that `vectors` begins with.
        max_norm: A bound on the norms of all vectors; None: unknown.
    """

    _parts: list[ExactRecall]

    def __init__(
        self, vectors: Tensor, earlier: GrowingRecall | None = None, max_norm: float | None = None
    ) -> None:
        parts = [] if earlier is None else list(earlier._parts)
        start = sum(map(len, parts))
        if start < len(vectors):
            while parts and 2 * (len(vectors) - start) >= len(parts[-1]):
                start -= len(parts.pop())
            parts.append(ExactRecall(vectors[start:], max_norm=max_norm))
        self._parts = parts

    def search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return scores and rows (A, min(k, N)), best first, equal scores by row."""
        starts = [0]
        for part in self._parts[:-1]:
            starts.append(starts[-1] + len(part))
        found = [part.search(queries, k) for part in self._parts]
        scores = torch.cat([part_scores for part_scores, _ in found], 1)
        rows = torch.cat([rows + start for start, (_, rows) in zip(starts, found, strict=True)], 1)
        # The sort is stable, and the parts stand in the order of their rows.
        best, order = scores.sort(dim=1, descending=True, stable=True)
        return best[:, :k], rows.gather(1, order[:, :k])
