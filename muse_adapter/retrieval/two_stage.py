"""Search in two stages: a cheap score chooses candidates, a fine one orders them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Recall(Protocol):
    """What finds candidates: `ExactRecall`, an index of faiss, or anything with this method."""

    def search(self, vectors: Any, k: int, /) -> tuple[Any, Any]:
        """Return scores and ids, best first, k or fewer for each of the queries (A, D)."""
        ...


class TwoStageRetriever:
    """Search with a cheap score first and a fine score for its candidates alone.

    Either direction is a search of its own: to find texts for a video, build a second retriever
    whose recall and features are those of the texts. The video then has its own candidates.

    Args:
        recall: Finds candidates by `search(vectors, k) -> (scores, ids)`, as an index of faiss
            does. In arrays and tensors of ids, -1 means no result.
        features: `features[ids]` gives what `rerank` needs of the candidates, for a list of ids;
            `FeatureRows` reads memory and mapped files in place.
        rerank: From one query and the features of its K candidates to their scores (K,).
        candidates: K. As many as there are items gives the full ranking by `rerank`.

    Raises:
        ValueError: `candidates` is below 1.
    """

    def __init__(
        self,
        recall: Recall,
        features: Any,
        rerank: Callable[[Any, Any], Any],
        *,
        candidates: int = 50,
    ) -> None:
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        self.recall = recall
        self.features = features
        self.rerank = rerank
        self.candidates = candidates

    def search(
        self,
        queries: Tensor | Mapping[str, Tensor],
        k: int = 10,
        *,
        recall_queries: Any = None,
    ) -> tuple[Any, Tensor]:
        """Find the best items for each query.

        Args:
            queries: (A, D), or a mapping of tensors with A rows each. `rerank` gets one row.
            k: How many to find, at most `candidates`.
            recall_queries: (A, D) for the recall; None: `queries`, which then must be a tensor.

        Returns:
            Ids and fine scores (A, k), best first, equal scores in the order of the recall. Ids are
            an int64 tensor if the recall gives arrays or tensors, otherwise a list for each query.
            If the recall finds fewer than k for every query, there are fewer columns; for some,
            theirs end with -1 or None, of score minus infinity.

        Raises:
            TypeError: `queries` is a mapping and `recall_queries` is None.
            ValueError: `k` is not in 1 to `candidates`, the numbers of queries differ, or `rerank`
                returns another number of scores or NaN.
        """
        if not 1 <= k <= self.candidates:
            raise ValueError(f"k must be from 1 to candidates = {self.candidates}, got {k}")
        rows = _rows(queries)
        if recall_queries is None:
            if isinstance(queries, Mapping):
                raise TypeError("a mapping of queries needs recall_queries, (A, D)")
            recall_queries = queries
        _, found = self.recall.search(recall_queries, self.candidates)
        as_tensor = not isinstance(found, (list, tuple))
        if len(found) != len(rows):
            raise ValueError(f"the recall must answer {len(rows)} queries, got {len(found)}")
        if as_tensor:
            found = [
                [item for item in row if item != -1] if -1 in row else row for row in found.tolist()
            ]
        ranked = [
            self._reranked(query, ids if as_tensor else list(ids), k)
            for query, ids in zip(rows, found, strict=True)
        ]
        width = max((len(ids) for ids, _, _ in ranked), default=0)
        missing = -1 if as_tensor else None
        # Whole numbers above 2**24 are not all in float32.
        wide = any(kind == torch.float64 or not kind.is_floating_point for _, _, kind in ranked)
        padded = [best + [missing] * (width - len(best)) for best, _, _ in ranked]
        numbers = [best + [-math.inf] * (width - len(best)) for _, best, _ in ranked]
        scores = torch.tensor(numbers, dtype=torch.float64 if wide else torch.float32)
        shape = len(ranked), width
        if as_tensor:
            return torch.tensor(padded, dtype=torch.long).view(shape), scores.view(shape)
        return padded, scores.view(shape)

    def _reranked(
        self, query: Any, ids: list[Any], k: int
    ) -> tuple[list[Any], list[float], torch.dtype]:
        """Return the best ids of a query, their scores, and the type of these."""
        if not ids:
            return [], [], torch.float32
        with torch.no_grad():
            scores = torch.as_tensor(self.rerank(query, self.features[ids]))
        if tuple(scores.shape) != (len(ids),):
            raise ValueError(
                f"rerank must return one score for each of {len(ids)} candidates, got shape "
                f"{tuple(scores.shape)}"
            )
        # Python sorts some 50 numbers faster than torch is called for it.
        numbers = scores.tolist()
        if wrong := sum(map(math.isnan, numbers)):
            raise ValueError(f"rerank must not return NaN, got it for {wrong} of {len(ids)} ids")
        order = sorted(range(len(ids)), key=numbers.__getitem__, reverse=True)[:k]
        return [ids[i] for i in order], [numbers[i] for i in order], scores.dtype


def _rows(queries: Any) -> list[Any]:
    """Cut queries into one for each row; views, not copies."""
    if not isinstance(queries, Mapping):
        return list(queries)
    counts = {name: len(tensor) for name, tensor in queries.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"all queries must have one number of rows, got {counts}")
    count = next(iter(counts.values()))
    return [{name: tensor[i] for name, tensor in queries.items()} for i in range(count)]
