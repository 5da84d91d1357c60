"""Vectors in fewer bytes than float32: scores of a few queries read less memory."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops import backend_for, byte_products

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
        return largest * (3 * 2**-11 + dim * 2**-24 + 2 * math.sqrt(dim) * 2**-25) + 2**-24


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
        return largest * (2**-11 + dim * 2**-23) + math.sqrt(dim) * 2**-25


class ByteVectors:
    """A copy in int8, each vector by its largest entry.

    Args:
        parts: The vectors, (n, D) each, with norms of at most 1.
    """

    max_queries = 6

    def __init__(self, parts: Iterable[Tensor]) -> None:
        numbers, scales, self._residual = [], [], 0.0
        for part in parts:
            scale = part.abs().amax(1, keepdim=True).float() / 127
            scale.clamp_(min=torch.finfo(torch.float32).tiny)
            rounded = (part / scale).round()
            numbers.append(rounded.to(torch.int8))
            lost = torch.linalg.vector_norm(rounded.mul_(scale).sub_(part), dim=1).amax()
            self._residual = max(self._residual, float(lost))
            scales.append(scale[:, 0])
        self.numbers, self.scales = torch.cat(numbers), torch.cat(scales)

    def scores(self, queries: Tensor) -> Iterator[tuple[int, Tensor]]:
        """See `HalfVectors.scores`."""
        step = _CHUNK // len(queries)
        for start in range(0, len(self.numbers), step):
            part = slice(start, start + step)
            yield start, byte_products(self.numbers[part], self.scales[part], queries)

    def error(self, largest: float, dim: int) -> float:
        """See `HalfVectors.error`."""
        return self._residual + largest * dim * 2**-22 + math.sqrt(dim) * 2**-120


NarrowVectors = HalfVectors | PackedVectors | ByteVectors


def copy_narrow(parts: Iterable[Tensor]) -> NarrowVectors:
    """Copy vectors, in parts (n, D) with norms of at most 1: in int8 where numba reads it.

    Elsewhere in float16, packed where that is possible.
    """
    if backend_for(torch.device("cpu")) == "numba":
        return ByteVectors(parts)
    if PackedVectors.is_available():
        return PackedVectors(parts)
    return HalfVectors(torch.cat([part.half() for part in parts]))


def _pack(part: Tensor) -> Any:
    return torch.ops.quantized.linear_prepack_fp16(part.float().contiguous(), None)
