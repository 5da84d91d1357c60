"""The second stage of a search: a score of frame features orders what the vectors found."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from muse_adapter.retrieval import TwoStageRetriever
from muse_adapter.search.models import FrameScorer
from muse_adapter.search.store import Table

CANDIDATES = 50  # videos of the first stage, or as many as are wanted


def search_twice(
    table: Table, vectors: Tensor, k: int, scorer: FrameScorer
) -> tuple[list[float], list[Any]]:
    """Search with the vectors first, and order the videos that they find.

    Args:
        table: Of segments with frame features.
        vectors: (1, D), the embedding of the query.
        k: How many videos to find.
        scorer: Scores the best segment of each video, by the vectors.

    Returns:
        Scores, best first, and ids of the segments.
    """

    def rerank(query: Tensor, frames: list[Tensor]) -> Any:
        return scorer(query, [each.float() for each in frames])  # stored in half precision

    retriever = TwoStageRetriever(table, _Features(table), rerank, candidates=max(CANDIDATES, k))
    ids, scores = retriever.search(vectors, k)
    return scores[0, : len(ids[0])].tolist(), ids[0]


class _Features:
    """Frame features by the ids of segments, as `TwoStageRetriever` reads them."""

    def __init__(self, table: Table) -> None:
        self._table = table

    def __getitem__(self, ids: Sequence[Any]) -> list[Tensor]:
        return self._table.frames(ids)
