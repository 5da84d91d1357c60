"""Exact search by inner product: the first of two stages, without an index library."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muse_adapter.ops import linear, top_products
from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.choice import ENVIRONMENT
from muse_adapter.ops.top_vectors_inputs import NotFiniteError
from muse_adapter.ops.unit import unit
from muse_adapter.retrieval.narrow_vectors import Chunks, HalfVectors, NarrowVectors, copy_narrow
from muse_adapter.retrieval.vectors import as_ids, as_vectors

if TYPE_CHECKING:
    import numpy

_BLOCK = 1024  # vectors of a matrix product: they stay in the cache
_APART = 16  # numbers
_CHUNK = 2**22  # scores that are held at once
_PART = 2**16  # vectors that are converted at once
_QUERIES = 128  # queries of a pass
# Relative error of a product of float32 numbers that torch may narrow: `highest` keeps them, `high`
# allows TF32 (10 bits), `medium` bfloat16 (7 bits), by `torch.set_float32_matmul_precision`.
_NARROWED = {"highest": 0.0, "high": 2.0**-9, "medium": 2.0**-6}


class ExactRecall:
    """Search vectors by inner product, exactly.

    A first pass scores all vectors by matrix products: on a CPU, for a few queries, in int8 or
    float16, which leaves less memory to read. Every vector that may be among the k best, by what
    rounding may have done, is scored again by itself, in float64, and that decides. So equal
    vectors have equal scores, and neither scores nor order depend on the number of queries, beyond
    the rounding of sums in float64.

    Args:
        vectors: (N, D), floating point, finite: a tensor or a numpy array, in memory or mapped. It
            is not copied.
        ids: N different hashable ids; None: positions from 0.
        narrow_copy: Whether the vectors get a copy for the first pass, which few queries on a CPU
            use, for half of the time or less: D bytes a vector on top with numba, in int8, if D is
            a multiple of 16; else 2 D, in float16. None: a copy of vectors in other types, while
            those in float16 are read as they are, which takes longer than a copy. Results are the
            same.
        max_norm: A bound on the norms of the vectors, where one is known. None: all vectors are
            read once to find it. With it, NaN and infinity are refused by the search that meets
            them, if at all; and if it is too small, vectors may be missed.

    Raises:
        TypeError: `vectors` is not floating point.
        ValueError: It has another shape, is empty, or holds NaN or infinity; `ids` are of another
            number, or repeat; `max_norm` is negative or not finite.
    """

    def __init__(
        self,
        vectors: Tensor | numpy.ndarray,
        ids: Sequence[Hashable] | None = None,
        *,
        narrow_copy: bool | None = None,
        max_norm: float | None = None,
    ) -> None:
        self.vectors = as_vectors("vectors", vectors)
        if not len(self.vectors):
            raise ValueError("vectors must have at least one row, got none")
        self.ids = as_ids(ids, len(self.vectors))
        self._dtype = torch.promote_types(self.vectors.dtype, torch.float32)
        if max_norm is not None and not 0 <= max_norm < math.inf:
            raise ValueError(f"max_norm must be finite and not negative, got {max_norm}")
        self._largest = self._max_norm() if max_norm is None else float(max_norm)
        if not math.isfinite(self._largest):
            raise NotFiniteError
        self._narrow: NarrowVectors | None = None
        if self.vectors.device.type == "cpu" and self._largest > 0:
            is_half = self.vectors.dtype == torch.float16
            if narrow_copy or (narrow_copy is None and not is_half):
                self._narrow = copy_narrow(self._unit_parts, self.vectors.shape)
            elif is_half and self._largest < 2**14:
                self._narrow = HalfVectors(self.vectors, self._largest)

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
            ValueError: The queries have another shape or width or are not finite, inner products
                overflow, a vector that counts is not finite, or `k` is below 1.
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
        wide = queries.to(self.vectors.device, self._dtype)
        try:
            with without_autocast(wide.device.type):
                found = [self._search(part, min(k, len(self))) for part in wide.split(_QUERIES)]
        except NotFiniteError as error:
            raise self._explain(queries, error) from None
        scores, positions = found[0]
        if len(found) > 1:
            scores, positions = (torch.cat(parts) for parts in zip(*found, strict=True))
        if self.ids is None:
            return scores, positions
        ids = self.ids
        return scores, [[ids[position] for position in row] for row in positions.tolist()]

    def _search(self, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Search with queries (A, D) in the type of the scores."""
        if not len(queries):
            return queries.new_empty(0, k), torch.empty(0, k, dtype=torch.long)
        narrow, backend = self._narrow, None
        if narrow is not None and len(queries) <= narrow.max_queries:
            chunks = narrow.scores(queries)
            automatic = not os.environ.get(ENVIRONMENT)  # `use_backend` imports what it names
            if isinstance(narrow, HalfVectors) and automatic and "numba" not in sys.modules:
                # Its import takes a second, for little in a search of one query.
                backend = "torch"
        else:
            chunks = self._scores(queries)
        found = []
        for start, scores, error in chunks:
            part, count = self.vectors, scores.shape[1]
            if count < len(part):
                part = part[start : start + count]
            best, positions = top_products(
                part, queries, scores, min(k, count), error=error, backend=backend
            )
            found.append((best, positions + start if start else positions))
        if len(found) == 1:
            return found[0]
        best, positions = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
        best, order = best.sort(dim=1, descending=True, stable=True)
        return best[:, :k], positions.gather(1, order[:, :k])

    def _explain(self, queries: Tensor, error: NotFiniteError) -> ValueError:
        """Return the error of products that are not finite: the queries may be to blame."""
        if not bool(queries.isfinite().all()):
            return ValueError("queries must be finite, got NaN or infinity")
        largest, limit = float(_largest_norm(queries)), torch.finfo(self._dtype).max
        if max(largest, largest * self._largest) > limit:
            return ValueError(
                f"queries and inner products must not overflow {self._dtype}, got queries and "
                f"vectors with norms up to {largest:.1e} and {self._largest:.1e}"
            )
        return error

    def _scores(self, queries: Tensor) -> Chunks:
        """Score all vectors in the type of the queries (A, D), see `HalfVectors.scores`."""
        rounding = queries.shape[1] * torch.finfo(queries.dtype).eps
        if queries.dtype == torch.float32:
            rounding += _NARROWED[torch.get_float32_matmul_precision()]
        # Products of denormal numbers vanish.
        error = rounding * self._largest + queries.shape[1] * torch.finfo(queries.dtype).tiny
        length = max(_BLOCK, _CHUNK // len(queries))
        # Rows a power of two apart would share few places of the cache.
        scores = queries.new_empty(len(queries), min(length, len(self)) + _APART)
        room = queries.new_empty(_BLOCK, queries.shape[1])
        units = unit(queries)
        for start in range(0, len(self), length):
            part = self.vectors[start : start + length]
            for i, block in enumerate(part.split(_BLOCK)):
                wide = block if block.dtype == room.dtype else room[: len(block)].copy_(block)
                scores[:, i * _BLOCK : i * _BLOCK + len(block)] = linear(units, wide)
            yield start, scores[:, : len(part)], 1.01 * error

    def _max_norm(self) -> float:
        return float(torch.stack([_largest_norm(part) for part in self._parts()]).amax())

    def _parts(self) -> tuple[Tensor, ...]:
        return self.vectors.split(_PART)

    def _unit_parts(self) -> Iterator[Tensor]:
        """Yield the vectors in parts, in float32 at least, divided by the bound on their norms."""
        return (_wide(part) / self._largest for part in self._parts())


def _largest_norm(part: Tensor) -> Tensor:
    """Return the largest norm of vectors (n, D), in float64, which holds squares of other types."""
    if part.dtype != torch.float64:
        return torch.linalg.vector_norm(part, dim=1, dtype=torch.float64).amax()
    largest = _not_zero(part.abs().amax())
    return torch.linalg.vector_norm(part / largest, dim=1).amax() * largest


def _not_zero(divisor: Tensor) -> Tensor:
    return divisor.clamp(min=torch.finfo(divisor.dtype).tiny)


def _wide(vectors: Tensor) -> Tensor:
    return vectors.to(torch.promote_types(vectors.dtype, torch.float32))
