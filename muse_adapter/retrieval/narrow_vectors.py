"""Vectors in fewer bytes than float32: scores of a few queries read less memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops import byte_products
from muse_adapter.ops.choice import choose
from muse_adapter.ops.unit import unit

_CHUNK = 2**22  # scores that are held at once

# First position, scores (A, n), and a bound on their errors: of all, or of each (n,).
Chunks = Iterator[tuple[int, Tensor, float | Tensor]]


class HalfVectors:
    """Vectors in float16 as they are, scored by torch's product of a matrix and a vector.

    Args:
        vectors: (N, D) float16.
        max_norm: A bound on their norms.
    """

    max_queries = 1

    def __init__(self, vectors: Tensor, max_norm: float = 1.0) -> None:
        self.vectors = vectors
        # float16 rounds the vector, the query and the score by 2**-11 of each, its smallest numbers
        # by 2**-25; the sum is one of float32.
        dim = vectors.shape[1]
        error = 3 * 2**-11 + dim * 2**-24 + 2 * math.sqrt(dim) * 2**-25
        self.error = 1.01 * (max_norm * error + 2**-24)

    def scores(self, queries: Tensor) -> Chunks:
        """Score all vectors for queries (A, D), which are brought to unit norm.

        Yields:
            First position, scores (A, n) of a chunk in float32, and a bound on their errors.
        """
        narrow = unit(queries[0]).half()
        for start in range(0, len(self.vectors), _CHUNK):
            scores = self.vectors[start : start + _CHUNK] @ narrow
            yield start, scores.float()[None], self.error


class PackedVectors:
    """A copy in float16 in the order in which FBGEMM reads it, which has torch's fastest product.

    It is what stands behind linear layers with half-precision weights. Queries and sums are in
    float32, and memory is read once for up to six queries.

    Args:
        parts: The vectors, (n, D) each, with norms of at most 1.
        dim: D.
    """

    max_queries = 6

    def __init__(self, parts: Iterable[Tensor], dim: int) -> None:
        self.parts = [(len(part), _pack(part)) for part in parts]
        self.error = 1.01 * (2**-11 + dim * 2**-23 + math.sqrt(dim) * 2**-25)

    @staticmethod
    def is_available() -> bool:
        """Whether this processor and this build of torch have it."""
        try:
            _pack(torch.zeros(1, 1))
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
        return True

    def scores(self, queries: Tensor) -> Chunks:
        """See `HalfVectors.scores`."""
        units, start = unit(queries).float(), 0
        for length, packed in self.parts:
            yield start, torch.ops.quantized.linear_dynamic_fp16(units, packed), self.error
            start += length


class ByteVectors:
    """A copy in int8 of what each vector has beyond the mean, by its largest entry.

    Without the mean, by which all scores of a query move alike: embeddings of a model often share
    most of it. What rounding loses is kept for each vector, so that one with a single large entry
    leaves no other in doubt.

    Args:
        parts: Makes the vectors anew at each call, in parts (n, D) with norms of at most 1.
        shape: (N, D); D is a multiple of 16, or no kernel reads them.
    """

    max_queries = 6

    def __init__(self, parts: Callable[[], Iterable[Tensor]], shape: Sequence[int]) -> None:
        count, dim = shape
        mean = torch.stack([part.sum(0, dtype=torch.float64) for part in parts()]).sum(0) / count
        numbers = torch.empty(shape, dtype=torch.int8)
        scales, errors = torch.empty(2, count)
        start = 0
        for part in parts():
            rest = part - mean.to(part.dtype)
            scale = rest.abs().amax(1).float() / 127
            scale.clamp_(min=torch.finfo(torch.float32).tiny)
            rounded = (rest / scale[:, None]).round_()
            rows = slice(start, start + len(part))
            numbers[rows], scales[rows] = rounded, scale
            lost = rounded.mul_(scale[:, None]).sub_(rest)
            errors[rows] = torch.linalg.vector_norm(lost, dim=1)
            start += len(part)
        # Products and sums are in float32, and so is what the mean was taken from; 1 is the norm of
        # the query, up to its rounding.
        errors.mul_(1.01).add_(2 * dim * 2**-22 + math.sqrt(dim) * 2**-120)
        self.numbers, self.scales, self.errors = numbers, scales, errors
        self._cut()

    def _cut(self) -> None:
        """Make the views once: each takes as long as some hundred products."""
        step = _CHUNK // self.max_queries
        parts = (whole.split(step) for whole in (self.numbers, self.scales, self.errors))
        self._chunks = list(zip(range(0, len(self.numbers), step), *parts, strict=True))

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the views: each would be written with all it is a view of."""
        return {name: value for name, value in vars(self).items() if name != "_chunks"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cut()

    def scores(self, queries: Tensor) -> Chunks:
        """See `HalfVectors.scores`; those of a query are moved by one number."""
        if queries.dtype == torch.float64:  # float32 may not hold them before
            queries = unit(queries).float()
        for start, numbers, scales, errors in self._chunks:
            yield start, byte_products(numbers, scales, queries), errors


NarrowVectors = HalfVectors | PackedVectors | ByteVectors


def copy_narrow(parts: Callable[[], Iterable[Tensor]], shape: Sequence[int]) -> NarrowVectors:
    """Copy vectors in int8 where a kernel reads it, else in float16, packed if that is possible.

    Args:
        parts: Makes the vectors anew at each call, in parts (n, D) with norms of at most 1.
        shape: (N, D).
    """
    backend = choose(torch.device("cpu"), only_here=True)
    if backend.name == "numba" and shape[1] % 16 == 0:
        return ByteVectors(parts, shape)
    if PackedVectors.is_available():
        return PackedVectors(parts(), shape[1])
    return HalfVectors(torch.cat([part.half() for part in parts()]))


def _pack(part: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(part.float().contiguous(), None)
