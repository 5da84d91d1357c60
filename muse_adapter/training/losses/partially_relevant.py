"""Losses of partially relevant retrieval, where a batch has every sentence of its videos."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.training.losses.checks import (
    as_indices,
    as_scores,
    logsumexp_of,
    mean_of,
    own_pairs,
)

Negatives = str | tuple[Tensor, Tensor]


def multi_positive_nce(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the contrastive loss of videos with several queries.

        mean over q of [lse over v of s_qv - s_q,own]
        + mean over v of [lse over q of s_qv - lse over own q of s_qv]

    Args:
        scores: (Q, V) floating point.
        labels: (Q,) integers, the video of each query. Videos without a query are negatives only.

    Returns:
        Scalar in float32, or float64.

    Raises:
        TypeError: `scores` is not floating point, or `labels` are not integers.
        ValueError: A shape is wrong, or a label is out of range.
    """
    scores, labels, own = _checked(scores, labels)
    by_video = scores.logsumexp(0) - logsumexp_of(scores, own, dim=0)
    return F.cross_entropy(scores, labels) + mean_of(by_video, own.any(0))


def triplet_loss(
    scores: Tensor,
    labels: Tensor,
    *,
    margin: float = 0.2,
    negatives: Negatives = "random",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Compute the triplet loss in both directions.

        mean over q of max(0, margin + s_q,negative - s_q,own)
        + mean over v of max(0, margin + s_negative,v - mean over own q of s_qv)

    Args:
        scores: (Q, V) floating point.
        labels: (Q,) integers, the video of each query.
        margin: By which a negative must stay below.
        negatives: "random": one of the other videos, and of the queries of other videos, with equal
            chances. "hardest": the highest of them. Or indices: a video (Q,) for each query, and a
            query (V,) for each video.
        generator: Of the random choice; None: torch's own.

    Returns:
        Scalar in float32, or float64. A query or a video without any negative, and a video without
        a query, has no part in it.

    Raises:
        TypeError: As for `multi_positive_nce`.
        ValueError: As for `multi_positive_nce`, an index is out of range, or `negatives` is another
            word.
    """
    scores, labels, own = _checked(scores, labels)
    if isinstance(negatives, str):
        video = _choose(scores, own, negatives, generator)
        query = _choose(scores.T, own.T, negatives, generator)
    else:
        video = as_indices("negatives[0]", negatives[0], *scores.shape)
        query = as_indices("negatives[1]", negatives[1], *scores.T.shape)
    by_query = (
        margin + scores.gather(1, video[:, None])[:, 0] - scores.gather(1, labels[:, None])[:, 0]
    )
    by_video = margin + scores.gather(0, query[None])[0] - mean_of(scores, own)
    has_negative = (~own).any(0) & own.any(0)
    return mean_of(by_query.relu(), (~own).any(1)) + mean_of(by_video.relu(), has_negative)


def query_diverse_loss(
    queries: Tensor, labels: Tensor, *, scale: float = 32.0, delta: float = 0.2
) -> Tensor:
    """Push the queries of one video apart.

        mean over i of log(1 + sum over j != i of the same video of exp(scale * (cos_ij + delta)))

    Args:
        queries: (Q, D) floating point.
        labels: (Q,) integers, the video of each query.
        scale: Factor on the cosines.
        delta: Added to the cosines.

    Returns:
        Scalar in float32, or float64.

    Raises:
        TypeError: `queries` is not floating point, or `labels` are not integers.
        ValueError: A shape is wrong.
    """
    wide = as_scores("queries", queries)
    norm = torch.linalg.vector_norm(wide, dim=1, keepdim=True)
    unit = wide / norm.masked_fill(norm == 0, torch.inf)  # a zero query gets no gradient
    labels = as_indices("labels", labels, len(queries))
    with torch.autocast(unit.device.type, enabled=False):
        logits = scale * (unit @ unit.T + delta)
    same = labels[:, None] == labels
    same.fill_diagonal_(False)
    return F.softplus(logsumexp_of(logits, same, dim=1)).mean()


def _choose(
    scores: Tensor, own: Tensor, negatives: str, generator: torch.Generator | None
) -> Tensor:
    """Choose a negative for each row, an index (rows,); any where a row has none."""
    if negatives == "hardest":
        order = scores.detach()
    elif negatives == "random":
        order = torch.rand(scores.shape, generator=generator, device=scores.device)
    else:
        raise ValueError(f'negatives must be "random", "hardest" or indices, got {negatives!r}')
    return order.masked_fill(own, -torch.inf).argmax(1)


def _checked(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    scores = as_scores("scores", scores)
    labels = as_indices("labels", labels, *scores.shape)
    return scores, labels, own_pairs(labels, scores)
