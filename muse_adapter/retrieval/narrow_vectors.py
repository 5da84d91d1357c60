"""Vectors in fewer bytes than float32: scores of a few queries read less memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops import byte_products
from muse_adapter.ops.choice import choose

_CHUNK = 2**22  # scores that are held at once


class HalfVectors:
    """Vectors in float16 as they are, scored by torch's product of a matrix and a vector.

    Args:
        vectors: (N, D) float16.
    """

    max_queries = 1

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors

    def scores(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Score all vectors for queries (A, D) of unit norm, float32.

        Yields:
            First position and scores (A, n) of a chunk, in float32.
        """
        narrow = queries[0].half()
        for start in range(0, len(self.vectors), _CHUNK):
            yield start, (self.vectors[start : start + _CHUNK] @ narrow).float()[None]

    @staticmethod
    def error(largest: float, dim: int) -> float:
        """Bound the error of a score, of vectors with norms up to `largest`."""
        # float16 rounds the vector, the query and the score by 2**-11 of each, its smallest numbers
        # by 2**-25; the sum is one of float32.
        error = 3 * 2**-11 + dim * 2**-24 + 2 * math.sqrt(dim) * 2**-25
        return 1.01 * (largest * error + 2**-24)


class PackedVectors:
    """A copy in float16 in the order in which FBGEMM reads it, which has torch's fastest product.

    It is what stands behind linear layers with half-precision weights. Queries and sums are in
    float32, and memory is read once for up to six queries.

    Args:
        parts: The vectors, (n, D) each, with norms of at most 1.
    """

    max_queries = 6

    def __init__(self, parts: Iterable[Tensor]) -> None:
        self.parts = [(len(part), _pack(part)) for part in parts]

    @staticmethod
    def is_available() -> bool:
        """Whether this processor and this build of torch have it."""
        try:
            _pack(torch.zeros(1, 1))
        except (AttributeError, NotImplementedError, RuntimeError):
            return False
        return True

    def scores(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See `HalfVectors.scores`."""
        start = 0
        for length, packed in self.parts:
            yield start, torch.ops.quantized.linear_dynamic_fp16(queries, packed)
            start += length

    @staticmethod
    def error(largest: float, dim: int) -> float:
        """See `HalfVectors.error`."""
        return 1.01 * (largest * (2**-11 + dim * 2**-23) + math.sqrt(dim) * 2**-25)


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
        self.numbers = torch.empty(shape, dtype=torch.int8)
        self.scales, self.errors = torch.empty(2, count)
        start = 0
        for part in parts():
            rest = part - mean.to(part.dtype)
            scale = rest.abs().amax(1).float() / 127
            scale.clamp_(min=torch.finfo(torch.float32).tiny)
            numbers = (rest / scale[:, None]).round_()
            rows = slice(start, start + len(part))
            self.numbers[rows], self.scales[rows] = numbers, scale
            lost = numbers.mul_(scale[:, None]).sub_(rest)
            self.errors[rows] = torch.linalg.vector_norm(lost, dim=1)
            start += len(part)
        # Products and sums are in float32, and so is what the mean was taken from; 1 is the norm of
        # the query, up to its rounding.
        self.errors.mul_(1.01).add_(2 * dim * 2**-22 + math.sqrt(dim) * 2**-120)

    def scores(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See `HalfVectors.scores`; those of a query are moved by one number."""
        step = _CHUNK // len(queries)
        for start in range(0, len(self.numbers), step):
            part = slice(start, start + step)
            yield start, byte_products(self.numbers[part], self.scales[part], queries)

    def error(self, largest: float, dim: int) -> Tensor:
        """Bound the error of each score (N,)."""
        return self.errors


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
        return PackedVectors(parts())
    return HalfVectors(torch.cat([part.half() for part in parts()]))


def _pack(part: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(part.float().contiguous(), None)
