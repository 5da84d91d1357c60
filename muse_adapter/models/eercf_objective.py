"""EERCF's objective, in which the gate of a video is that of its own text."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from muse_adapter.training.losses import contrastive_loss, pearson_constraint

T = TypeVar("T")


class EercfScores(NamedTuple):
    """EERCF's scores of all pairs, each (A, B), or None where not computed.

    Attributes:
        video: Of the text and the video vector, by the learned matrix W.
        frame_weak: Of the text and the frames, weighted by their own softmax.
        patch_weak: Of the text and the patches, likewise.
        frame: Of the text and the frames that it gates.
        patch: Of the text and the patches that it gates.
    """

    video: Tensor | None
    frame_weak: Tensor | None
    patch_weak: Tensor | None
    frame: Tensor | None
    patch: Tensor | None


class EercfLoss(NamedTuple):
    """EERCF's objective, scalars.

    Attributes:
        total: The weighted sum of the parts, which is what to minimise.
        weak: Contrastive loss of the weak scores.
        strong: Contrastive loss of the gated scores.
        intra: Pearson constraints.
    """

    total: Tensor
    weak: Tensor
    strong: Tensor
    intra: Tensor


class ObjectiveWeights(NamedTuple):
    """Weights of the objective; the defaults are the published ones.

    Attributes:
        weak: Of `video`, `frame_weak` and `patch_weak` in the weak loss.
        strong: Of `frame` and `patch` in the strong loss.
        intra: Of the constraints of the text with the video vector, the gated frames and the gated
            patches.
        pearson: Of the diagonal and the rest of a correlation matrix.
        total: Of the weak, the strong and the intra part.
    """

    weak: tuple[float, float, float] = (0.5, 0.5, 0.05)
    strong: tuple[float, float] = (1.0, 0.0)
    intra: tuple[float, float, float] = (1.0, 1.0, 0.0)
    pearson: tuple[float, float] = (0.14, 0.0)
    total: tuple[float, float, float] = (0.8, 0.2, 0.001)

    @property
    def pools_patches(self) -> bool:
        """Whether the gated patches have a weight."""
        return bool(self.strong[1] or self.intra[2])


class PairedVectors(NamedTuple):
    """One vector of each kind for each pair, (B, D); None without patches.

    Attributes:
        text: Of unit norm.
        video: The video vector.
        frame: The frames that the own text gates.
        patch: The patches that the own text gates.
    """

    text: Tensor
    video: Tensor
    frame: Tensor
    patch: Tensor | None


def eercf_loss(
    scores: EercfScores, vectors: PairedVectors, logit_scale: Tensor, weights: ObjectiveWeights
) -> EercfLoss:
    """Combine scores and vectors of pairs to EERCF's objective.

    Args:
        scores: Of all pairs, (B, B); text i belongs to video i.
        vectors: Of the pairs.
        logit_scale: Scalar, the logarithm of the factor on the scores.
        weights: Of the parts.

    Returns:
        The total and its parts; the parts do not have the weights of the total.
    """
    scale = logit_scale.to(vectors.text.dtype).exp()
    weak = weighted_sum(weights.weak, (scores.video, scores.frame_weak, scores.patch_weak))
    strong = weighted_sum(weights.strong, (scores.frame, scores.patch))
    weak, strong = contrastive_loss(scale * weak), contrastive_loss(scale * strong)
    diagonal, off_diagonal = weights.pearson
    text, *others = vectors
    constraints = [
        None
        if vector is None
        else pearson_constraint(text, vector, diagonal=diagonal, off_diagonal=off_diagonal)
        for vector in others
    ]
    intra = weighted_sum(weights.intra, constraints)
    total = weighted_sum(weights.total, (weak, strong, intra))
    return EercfLoss(total, weak, strong, intra)


def weighted_sum(weights: Sequence[float], terms: Sequence[Tensor | None]) -> Tensor:
    """Sum tensors times their weights, without those of weight 0 and those that are None.

    Raises:
        ValueError: Nothing is left.
    """
    return functools.reduce(torch.add, (w * term for w, term in weighted_terms(weights, terms)))


def weighted_terms(weights: Sequence[float], terms: Sequence[T | None]) -> list[tuple[float, T]]:
    """Pair weights with terms, without those of weight 0 and those that are None.

    Raises:
        ValueError: Nothing is left.
    """
    pairs = [
        (weight, term)
        for weight, term in zip(weights, terms, strict=True)
        if weight and term is not None
    ]
    if not pairs:
        raise ValueError(f"none of the scores that are there has a weight, got weights {weights}")
    return pairs
