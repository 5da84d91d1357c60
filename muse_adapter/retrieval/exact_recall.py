"""Exact search by inner product: the first of two stages, without an index library."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muse_adapter.retrieval.vectors import as_ids, as_vectors

if TYPE_CHECKING:
    import numpy

_BLOCK = 2048  # vectors of a matrix product: they stay in the cache
_CHUNK = 2**22  # scores that are held at once
_QUERIES = 128  # queries of a pass
# Candidates beyond k that the first pass keeps; more, if its rounding leaves more in doubt.
_SPARE = 32


class ExactRecall:
    """Search vectors by inner product, exactly.

    A first pass scores all vectors by matrix products: on a CPU, for a single query, in float16,
    which halves the memory to read. Every vector whose score is within the rounding error of the
    k-th best is scored again by itself, in float64, and that decides. So equal vectors have equal
    scores, and neither scores nor order depend on the number of queries.

    Args:
        vectors: (N, D), floating point, finite: a tensor or a numpy array, in memory or mapped. It
            is not copied.
        ids: N different hashable ids; None: positions from 0.
        half_copy: Whether vectors in other types than float16 get a copy in float16 for the first
            pass. Only single queries on a CPU use it: half of the memory of float32 on top, about
            half of the time. Results are the same.

    Raises:
        TypeError: `vectors` is not floating point.
        ValueError: It has another shape, is empty, or holds NaN or infinity; `ids` are of another
            number, or repeat.
    """

    def __init__(
        self,
        vectors: Tensor | numpy.ndarray,
        ids: Sequence[Hashable] | None = None,
        *,
        half_copy: bool = True,
    ) -> None:
        self.vectors = as_vectors("vectors", vectors)
        if not len(self.vectors):
            raise ValueError("vectors must have at least one row, got none")
        self.ids = as_ids(ids, len(self.vectors))
        norms = [torch.linalg.vector_norm(_wide(part), dim=1).amax() for part in self._parts()]
        # It bounds all rounding errors.
        self._largest = float(torch.stack(norms).amax())
        if not math.isfinite(self._largest):
            raise ValueError("vectors must be finite, with finite norms, got NaN or infinity")
        self._half: Tensor | None = None
        self._half_scale = 1.0
        if self.vectors.device.type == "cpu" and self._largest > 0:
            if self.vectors.dtype == torch.float16 and self._largest < 2**14:
                self._half = self.vectors
            elif half_copy and self.vectors.dtype != torch.float16:
                self._half_scale = self._largest
                halves = [(_wide(part) / self._largest).half() for part in self._parts()]
                self._half = torch.cat(halves)

    def __len__(self) -> int:
        return len(self.vectors)

    def search(self, vectors: Tensor | numpy.ndarray, k: int) -> tuple[Tensor, Any]:
        """Find the vectors with the largest inner products.

        Args:
            vectors: (A, D) queries, floating point, finite.
            k: How many to find for each query.

        Returns:
            Scores (A, min(k, N)) in float32, or float64 for float64, best first and equal ones by
            position; and their ids, a list for each query, or without ids the positions, int64
            (A, min(k, N)).

        Raises:
            TypeError: The queries are not floating point, or `k` is not an int.
            ValueError: The queries have another shape or width or are not finite, or `k` is below
                1.
        """
        queries = as_vectors("queries", vectors)
        if queries.shape[1] != self.vectors.shape[1]:
            raise ValueError(
                f"queries must have the width of the vectors, {self.vectors.shape[1]}, got "
                f"{queries.shape[1]}"
            )
        if not isinstance(k, int) or isinstance(k, bool):
            raise TypeError(f"k must be an int, got {type(k).__name__}")
        if k < 1:
            raise ValueError(f"k must be at least 1, got {k}")
        if not bool(torch.isfinite(queries).all()):
            raise ValueError("queries must be finite, got NaN or infinity")
        queries = queries.to(self.vectors.device, _wide(self.vectors[:1]).dtype)
        largest = torch.linalg.vector_norm(queries.double(), dim=1).amax() if len(queries) else 0
        if float(largest) * self._largest > torch.finfo(queries.dtype).max:
            raise ValueError(
                f"inner products must not overflow {queries.dtype}, got queries and vectors with "
                f"norms up to {float(largest):.1e} and {self._largest:.1e}"
            )
        found = [self._search(part, min(k, len(self))) for part in queries.split(_QUERIES)]
        scores, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        if self.ids is None:
            return scores, positions
        ids = self.ids
        return scores, [[ids[position] for position in row] for row in positions.tolist()]

    @torch.no_grad()
    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        if not len(queries):
            return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.long)
        rough, positions = [], []
        # The first pass takes queries of unit norm: neither their squares nor products vanish.
        scaled = queries.double() / _or_one(queries.double().abs().amax(1, keepdim=True))
        units = scaled / _or_one(torch.linalg.vector_norm(scaled, dim=1, keepdim=True))
        if len(queries) == 1 and self._half is not None:
            chunks, error = self._half_scores(units.to(queries.dtype))
        else:
            chunks, error = self._wide_scores(units.to(queries.dtype))
        for start, scores in chunks:
            best, index = _in_doubt(scores, k, error)
            rough.append(best)
            positions.append(index + start)
        _, chosen = _in_doubt(torch.cat(rough, 1), k, error)
        # By position, so that the stable sort leaves equal scores in this order.
        candidates = torch.cat(positions, 1).gather(1, chosen).sort(1).values
        scores = torch.stack(
            [
                # Not a matrix product, whose rounding depends on the number of rows.
                (self.vectors[row].double() * query.double()).sum(1).to(query.dtype)
                for row, query in zip(candidates, queries, strict=True)
            ]
        )
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return scores[:, :k], candidates.gather(1, order[:, :k])

    def _half_scores(self, query: Tensor) -> tuple[Iterator[tuple[int, Tensor]], Tensor]:
        """Score all vectors in float16, for a query (1, D) of unit norm.

        Returns:
            First positions and scores (1, n) of chunks, and the largest error (1, 1) of a score.
        """
        assert self._half is not None
        half, dim = self._half, query.shape[1]
        largest = self._largest / self._half_scale
        narrow = query[0].half()
        # float16 rounds the vector, the query and the score by 2**-11 of each, its smallest numbers
        # by 2**-25; the sum is one of float32.
        error = largest * (3 * 2**-11 + dim * 2**-24 + 2 * math.sqrt(dim) * 2**-25) + 2**-24
        chunks = (
            (start, (half[start : start + _CHUNK] @ narrow).float()[None])
            for start in range(0, len(half), _CHUNK)
        )
        return chunks, query.new_full((1, 1), 1.01 * error).float()

    def _wide_scores(self, queries: Tensor) -> tuple[Iterator[tuple[int, Tensor]], Tensor]:
        """Score all vectors in the type of the queries (A, D), of unit norm.

        Returns:
            As `_half_scores`.
        """
        rounding = queries.shape[1] * torch.finfo(queries.dtype).eps
        length = max(_BLOCK, _CHUNK // len(queries))

        def chunks() -> Iterator[tuple[int, Tensor]]:
            scores = queries.new_empty(len(queries), min(length, len(self)))
            for start in range(0, len(self), length):
                part = self.vectors[start : start + length]
                for i, block in enumerate(part.split(_BLOCK)):
                    out = scores[:, i * _BLOCK : i * _BLOCK + len(block)]
                    torch.mm(queries, _wide(block).T, out=out)
                yield start, scores[:, : len(part)]

        # Products of denormal numbers vanish.
        error = rounding * self._largest + queries.shape[1] * torch.finfo(queries.dtype).tiny
        return chunks(), queries.new_full((1, 1), 1.01 * error)

    def _parts(self) -> tuple[Tensor, ...]:
        return self.vectors.split(2**16)


def _in_doubt(scores: Tensor, k: int, error: Tensor) -> tuple[Tensor, Tensor]:
    """Choose what may be among the k best, if each score may be off by `error`.

    Args:
        scores: (A, n).
        k: How many are wanted in the end.
        error: (A, 1).

    Returns:
        Scores and indices (A, at least min(k, n)), the highest first.
    """
    size = scores.shape[1]
    best, index = scores.topk(min(k + _SPARE, size), dim=1)
    lowest = best[:, min(k, size) - 1, None] - 2 * error
    if best.shape[1] < size and bool((best[:, -1:] >= lowest).any()):
        count = int((scores >= lowest).sum(1).amax())
        best, index = scores.topk(count, dim=1)
    count = max(min(k, size), int((best >= lowest).sum(1).amax()))
    return best[:, :count], index[:, :count]


def _or_one(divisor: Tensor) -> Tensor:
    return divisor.masked_fill(divisor == 0, 1)


def _wide(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
