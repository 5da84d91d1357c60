"""What a training step minimises, by the model's objective."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from examples.quickstart.model import QuickstartModel
from muse_adapter import EERCF, MeanMaxSim
from muse_adapter.training.losses import contrastive_loss, sigmoid_loss


def training_loss(
    model: QuickstartModel,
    ids: Tensor,
    frames: Tensor,
    mask: Tensor,
    video: Tensor,
    caption: Tensor,
) -> Tensor:
    """Compute the loss of a batch.

    Rows that share a video or a caption are no negatives of each other; in EERCF's objective, which
    knows pairs alone, they are.

    Args:
        model: The model, on the device of all the others.
        ids: Token ids (B, L).
        frames: Frames (B, T, 3, height, width), or the tokens of a frozen backbone.
        mask: Bool (B, T).
        video: Int64 (B,), number of the video of each row.
        caption: Int64 (B,), number of the caption of each row.

    Returns:
        Scalar.
    """
    if isinstance(model.scorer, MeanMaxSim):
        words, word_mask = model.encode_words(ids)
        cls_tokens, fused, _ = model.encode_levels(frames, mask)
        scores = model.scorer.scores(words, cls_tokens, fused, word_mask, mask)
        losses = [
            batch_loss(model.logits(score), video, caption, loss=sigmoid_loss)
            for score in scores
            if score is not None
        ]
        return torch.stack(losses).sum()
    texts = model.encode_text(ids)
    if isinstance(model.scorer, EERCF):
        return model.score_loss(texts, model.encode_levels(frames, mask), mask).total
    similarity = model.similarity(texts, model.encode_video(frames, mask))
    return batch_loss(model.logits(similarity), video, caption)


def batch_loss(
    logits: Tensor,
    video: Tensor,
    caption: Tensor,
    *,
    loss: Callable[[Tensor], Tensor] = contrastive_loss,
) -> Tensor:
    """Compute the loss of a batch whose rows may share a video or a caption.

    Text and video of two such rows belong together: they are no negatives, and left out.

    Args:
        logits: (B texts, B videos); text i belongs to video i.
        video: Int64 (B,), number of the video of each row.
        caption: Int64 (B,), number of the caption of each row.
        loss: `contrastive_loss` or `sigmoid_loss`.

    Returns:
        Scalar.
    """
    together = (video[:, None] == video) | (caption[:, None] == caption)
    return loss(logits.masked_fill(together.fill_diagonal_(False), -math.inf))
