"""Random vectors of videos, queries, and the exact answers: what searches are timed with.

Each block of vectors is made from its number whenever it is needed, so that a million of them take
no memory, and a benchmark that was stopped goes on with the same ones.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 1000
QUERIES = 64
NOISE = 0.02  # of each number of a query or a frame; a unit vector's of width 512 are 0.04
FRAMES = 12


class Vectors:
    """Unit vectors (N, D) in half precision, one a video.

    Random vectors have no near neighbours. So each query is one of them with noise, which is the
    best answer; the others are all as far away as each other, or nearly.

    Args:
        size: N.
        dim: D.
    """

    def __init__(self, size: int, dim: int) -> None:
        self.size, self.dim = size, dim

    def block(self, number: int) -> Tensor:
        """Return the vectors from `number * BLOCK` on, (BLOCK, D) or fewer, in float32."""
        count = min(BLOCK, self.size - number * BLOCK)
        generator = torch.Generator().manual_seed(number)
        vectors = torch.randn(BLOCK, self.dim, generator=generator)[:count]
        return F.normalize(vectors, dim=1).half().float()

    @property
    def num_blocks(self) -> int:
        """How many blocks there are."""
        return -(-self.size // BLOCK)

    def frames(self, vectors: Tensor) -> Tensor:
        """Return frame features (n, FRAMES, D) of a block (n, D), rounded as a store does it."""
        return (vectors[:, None] + self._frame_noise[: len(vectors)]).half().float()

    @functools.cached_property
    def _frame_noise(self) -> Tensor:
        generator = torch.Generator().manual_seed(BLOCK)
        return NOISE * torch.randn(min(BLOCK, self.size), FRAMES, self.dim, generator=generator)

    @functools.cached_property
    def targets(self) -> Tensor:
        """Number of the vector that each query was made from, (QUERIES,)."""
        generator = torch.Generator().manual_seed(self.size)
        return torch.randint(self.size, (QUERIES,), generator=generator)

    @functools.cached_property
    def queries(self) -> Tensor:
        """Queries (QUERIES, D), of unit length."""
        found = [self.block(number // BLOCK)[number % BLOCK] for number in self.targets.tolist()]
        generator = torch.Generator().manual_seed(self.size + 1)
        noise = NOISE * torch.randn(QUERIES, self.dim, generator=generator)
        return F.normalize(torch.stack(found) + noise, dim=1)

    def best(self, k: int, score: Callable[[Tensor], Tensor] | None = None) -> list[list[int]]:
        """Return the numbers of the k best vectors for each query, none of them left out.

        Args:
            k: How many.
            score: From a block (n, D) to the scores (QUERIES, n); None: inner products in float64.
        """
        if score is None:
            queries = self.queries.double()
            score = lambda vectors: queries @ vectors.double().T  # noqa: E731
        scores, numbers = torch.empty(QUERIES, 0), torch.empty(QUERIES, 0, dtype=torch.long)
        for i in range(self.num_blocks):
            found = score(self.block(i))
            new = torch.arange(found.shape[1]).expand(QUERIES, -1) + i * BLOCK
            scores = torch.cat([scores.to(found), found], 1)
            scores, places = scores.topk(min(k, scores.shape[1]))
            numbers = torch.cat([numbers, new], 1).gather(1, places)
        return numbers.tolist()
