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
            found = [[item for item in row if item != -1] for row in found.tolist()]
        ranked = [
            self._reranked(query, ids if as_tensor else list(ids), k)
            for query, ids in zip(rows, found, strict=True)
        ]
        width = max((len(ids) for ids, _ in ranked), default=0)
        missing = -1 if as_tensor else None
        dtypes = [best.dtype for ids, best in ranked if ids]
        # Whole numbers above 2**24 are not all in float32.
        wide = any(kind == torch.float64 or not kind.is_floating_point for kind in dtypes)
        dtype = torch.float64 if wide else torch.float32
        scores = torch.full((len(ranked), width), -torch.inf, dtype=dtype)
        for row, (_, best) in zip(scores, ranked, strict=True):
            row[: len(best)] = best
        padded = [ids + [missing] * (width - len(ids)) for ids, _ in ranked]
        if as_tensor:
            return torch.tensor(padded, dtype=torch.long).view(len(ranked), width), scores
        return padded, scores

    def _reranked(self, query: Any, ids: list[Any], k: int) -> tuple[list[Any], Tensor]:
        if not ids:
            return [], torch.empty(0)
        with torch.no_grad():
            scores = torch.as_tensor(self.rerank(query, self.features[ids])).cpu()
        if tuple(scores.shape) != (len(ids),):
            raise ValueError(
                f"rerank must return one score for each of {len(ids)} candidates, got shape "
                f"{tuple(scores.shape)}"
            )
        best, order = scores.sort(descending=True, stable=True)
        if math.isnan(best[0].item()):  # it comes first
            wrong = int(scores.isnan().sum())
            raise ValueError(f"rerank must not return NaN, got it for {wrong} of {len(ids)} ids")
        return [ids[i] for i in order[:k].tolist()], best[:k]


def _rows(queries: Any) -> list[Any]:
    """Cut queries into one for each row; views, not copies."""
    if not isinstance(queries, Mapping):
        return list(queries)
    counts = {name: len(tensor) for name, tensor in queries.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"all queries must have one number of rows, got {counts}")
    count = next(iter(counts.values()))
    return [{name: tensor[i] for name, tensor in queries.items()} for i in range(count)]
