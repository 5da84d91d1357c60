"""Synthetic videos and queries with a known answer.

A video is a random direction, its frames and patches are noisy versions of it, and a query is a
very noisy version of one frame of its video. In a corpus of near duplicates, most of the direction
and of the noise is the same in all videos, so that their scores are close.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.retrieval import FeatureRows

# Standard deviations of noise, as parts of the norm of what it is added to.
FRAME_NOISE, FUSED_NOISE, PATCH_NOISE, QUERY_NOISE, WORD_NOISE = 1.0, 0.3, 1.0, 5.0, 1.0
_PART = 250  # videos that are made at once


class Shape(NamedTuple):
    """Sizes of a corpus.

    Attributes:
        frames, patches, dim, words: T, P (of a frame), D, W.
        distinct: Videos that have frame features of their own; those beyond reuse them in turn.
        distinct_patches: Likewise for patches; it divides `distinct`.
        queries: Their number.
        alike: Share of the direction and of the noise of features that all videos have in common.
    """

    frames: int = 12
    patches: int = 49
    dim: int = 512
    words: int = 32
    distinct: int = 10_000
    distinct_patches: int = 1_000
    queries: int = 64
    alike: float = 0.0


class Corpus:
    """Features of videos, in half precision as one would store them, and queries.

    All videos have a vector of their own. Beyond `shape.distinct` videos it is a random direction,
    as the others are, while frames and patches are reused in turn, so that times are those of a
    large corpus but what a fine stage finds there has no meaning.

    Args:
        size: Videos N.
        shape: The other sizes.

    Attributes:
        vectors: (N, D) float32, the mean of each video's frames, of unit norm.
        frames: (distinct, T, D) float16, the backbone's.
        fused: (distinct, T, D) float16, the head's.
        patches: (distinct_patches, T, P, D) float16.
        text: (A, D) float32, of unit norm.
        words: (A, W, D) float32, of unit norm.
        answers: (A,), the right video of each query.
    """

    def __init__(self, size: int, shape: Shape) -> None:
        self.size, self.shape = size, shape
        generator, common = (torch.Generator().manual_seed(seed) for seed in (0, 1))

        def noise(*sizes: int, generator: torch.Generator = generator) -> Tensor:
            return torch.randn(*sizes, shape.dim, generator=generator) / math.sqrt(shape.dim)

        def alike(own: Tensor, of_all: Tensor) -> Tensor:
            return own.lerp(of_all, shape.alike)

        direction, frame_noise, fused_noise, patch_noise = (
            noise(*sizes, generator=common)
            for sizes in ((), (shape.frames,), (shape.frames,), (shape.frames, shape.patches))
        )
        count = min(size, shape.distinct)
        self.frames = torch.empty(count, shape.frames, shape.dim, dtype=torch.float16)
        self.fused = torch.empty_like(self.frames)
        self.vectors = torch.empty(size, shape.dim)
        for start in range(0, count, _PART):
            part = slice(start, min(start + _PART, count))
            videos = part.stop - start
            frames = alike(noise(videos, 1), direction)
            frames = frames + FRAME_NOISE * alike(noise(videos, shape.frames), frame_noise)
            fused = frames + FUSED_NOISE * alike(noise(videos, shape.frames), fused_noise)
            self.frames[part], self.fused[part] = frames, fused
            self.vectors[part] = F.normalize(F.normalize(fused, dim=-1).mean(1), dim=-1)
        for start in range(count, size, 2**16):
            videos = min(2**16, size - start)
            self.vectors[start : start + videos] = F.normalize(noise(videos), dim=-1)
        self.patches = torch.empty(
            (min(size, shape.distinct_patches), shape.frames, shape.patches, shape.dim),
            dtype=torch.float16,
        )
        for i, patches in enumerate(self.patches):
            frame = self.frames[i, :, None].float()
            own = noise(shape.frames, shape.patches)
            patches.copy_(frame + PATCH_NOISE * alike(own, patch_noise))
        self.answers = torch.randperm(len(self.patches), generator=generator)[: shape.queries]
        moments = torch.randint(shape.frames, self.answers.shape, generator=generator)
        clean = self.frames[self.answers, moments].float()
        self.text = F.normalize(clean + QUERY_NOISE * noise(len(clean)), dim=-1)
        words = self.text[:, None] + WORD_NOISE * noise(len(clean), shape.words)
        self.words = F.normalize(words, dim=-1)

    def own_features(self, patches: bool) -> bool:
        """Say whether all videos have features, and patches if asked for, of their own."""
        return self.size <= len(self.patches if patches else self.frames)


def in_bytes(patches: Tensor) -> Tensor:
    """Round patches (videos, T, P, D) to int8, the largest entry of each to 127."""
    numbers = torch.empty(patches.shape, dtype=torch.int8)
    for video, out in zip(patches, numbers, strict=True):
        wide = video.float()
        out.copy_((wide * (127 / wide.abs().amax(-1, keepdim=True))).round())
    return numbers


def feature_rows(size: int, **features: Tensor) -> Any:
    """Return rows of the features of `size` videos, reused where there are fewer."""
    if all(len(array) == size for array in features.values()):
        return FeatureRows(features, lazy=True)
    return _Reused(**features)


class _Reused:
    """Features of `size` videos, of which there are fewer: `reused[ids]` takes them in turn.

    Args:
        features: Named arrays, of different numbers of videos.
    """

    def __init__(self, **features: Tensor) -> None:
        self._rows = {name: FeatureRows(array, lazy=True) for name, array in features.items()}

    def __getitem__(self, ids: Sequence[int]) -> dict[str, Any]:
        """Return the rows of the videos, by name."""
        stored = {name: (rows, len(rows)) for name, rows in self._rows.items()}
        return {name: rows[[i % count for i in ids]] for name, (rows, count) in stored.items()}


def in_parts(size: int, *arrays: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut features of `size` videos into parts, reused in turn where there are fewer.

    Args:
        size: Videos.
        arrays: Of the features; each length divides the next larger one, or is at least `size`.

    Yields:
        One part of each array, of equal length.
    """
    step = min(len(array) for array in arrays)
    for start in range(0, size, step):
        count = min(step, size - start)
        yield tuple(array[start % len(array) :][:count] for array in arrays)
