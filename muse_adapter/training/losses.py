"""Losses over similarities of texts and videos."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def contrastive_loss(logits: Tensor) -> Tensor:
    """Compute the symmetric contrastive loss (CLIP's InfoNCE) of paired texts and videos.

    Args:
        logits: (B, B) floating point, scaled similarities; text i belongs to video i.

    Returns:
        Scalar: the mean of both cross-entropies, texts over videos and videos over texts.

    Raises:
        ValueError: `logits` is not square, or empty.
    """
    if logits.dim() != 2 or logits.shape[0] != logits.shape[1] or not len(logits):
        raise ValueError(
            "logits must be square, one row per text and one column per video, got shape "
            f"{tuple(logits.shape)}"
        )
    targets = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2
