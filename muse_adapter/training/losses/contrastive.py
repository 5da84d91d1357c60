"""Losses over similarities of texts and videos: CLIP's and SigLIP's."""

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


def contrastive_loss(logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Compute the symmetric contrastive loss (CLIP's InfoNCE) of texts and videos.

    With targets, several texts of one video are no negatives of each other. Texts over videos is
    the mean over the texts of the cross-entropy with the own video. Videos over texts is the mean
    over the videos that have a text, and for each over its texts i, of

        -log(exp(l_i) / (exp(l_i) + sum over texts j of other videos of exp(l_j)))

    Args:
        logits: (A, B) floating point, scaled similarities.
        targets: (A,) integers, the index of each text's video. None: text i belongs to video i, and
            the matrix is square.

    Returns:
        Scalar in float32, or float64: the mean of both directions.

    Raises:
        TypeError: `logits` is not floating point, or `targets` are not integers.
        ValueError: `logits` is not a matrix, or empty, or without targets not square; `targets` are
            of another shape or out of range.
    """
    if targets is None:
        logits = _square(logits)
        targets = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
    logits = as_scores("logits", logits)
    targets = as_indices("targets", targets, *logits.shape)
    own = own_pairs(targets, logits)  # (A, B)
    negatives = logsumexp_of(logits, ~own, dim=0)  # (B,)
    of_text = logits.gather(1, targets[:, None])[:, 0]  # (A,)
    losses = torch.logaddexp(negatives[targets], of_text) - of_text
    per_video = mean_of(losses[:, None].expand_as(own), own)
    by_video = mean_of(per_video, own.any(0))
    return (F.cross_entropy(logits, targets) + by_video) / 2


def sigmoid_loss(logits: Tensor, targets: Tensor | None = None) -> Tensor:
    """Compute SigLIP's loss: each pair of a text and a video is its own yes-or-no question.

    It is the mean over texts of the sum over videos of -log(sigmoid(z * logit)), where z is 1 for a
    text and its own video and -1 otherwise.

    Args:
        logits: (A, B) floating point, scaled similarities plus bias.
        targets: As for `contrastive_loss`.

    Returns:
        Scalar in float32, or float64.

    Raises:
        TypeError: As for `contrastive_loss`.
        ValueError: As for `contrastive_loss`.
    """
    if targets is None:
        logits = _square(logits)
        own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    else:
        logits = as_scores("logits", logits)
        own = own_pairs(as_indices("targets", targets, *logits.shape), logits)
    return -F.logsigmoid(torch.where(own, logits, -logits)).sum(1).mean()


def _square(logits: Tensor) -> Tensor:
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1] or not len(logits):
        raise ValueError(
            "logits must be square, one row per text and one column per video, if no targets are "
            f"given, got shape {tuple(logits.shape)}"
        )
    return as_scores("logits", logits)
