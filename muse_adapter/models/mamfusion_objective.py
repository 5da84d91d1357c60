"""MamFusion's training objective."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from muse_adapter.models.video_code import VideoCode, pair_cosines, pair_scores
from muse_adapter.training.losses import multi_positive_nce, query_diverse_loss, triplet_loss
from muse_adapter.training.losses.partially_relevant import Negatives


class MamFusionLoss(NamedTuple):
    """The objective and its parts, scalars; the parts do not have their weights.

    Attributes:
        total: The weighted sum.
        clip_nce: Contrastive, of the largest inner products with clips.
        clip_triplet: Of the largest cosines with clips.
        frame_nce: Contrastive, of the inner products with the frames' vector.
        frame_triplet: Of the cosines with the frames' vector.
        query_diverse: Between the queries of one video.
    """

    total: Tensor
    clip_nce: Tensor
    clip_triplet: Tensor
    frame_nce: Tensor
    frame_triplet: Tensor
    query_diverse: Tensor


class BatchGate(nn.Module):
    """The gate that the published code calls temporal fusion; it has part in the loss only.

        video' = video * attention from the videos to the queries of the batch
        query' = query * attention from the queries to the video' of the batch

    The attention runs over the batch, not over time. Pass it to `MamFusion.loss` to repeat the
    published training; its parameters are then trained by the query-diverse loss alone.

    Args:
        dim: Width D.
        heads: Attention heads.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.video_to_text = nn.MultiheadAttention(dim, heads)
        self.text_to_video = nn.MultiheadAttention(dim, heads)

    def forward(self, query: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        """Gate the vectors of a batch.

        Args:
            query: (Q, D).
            video: (V, D).

        Returns:
            The gated queries (Q, D), and the gated videos (V, D), which nothing else uses.
        """
        video = video * self.video_to_text(video, query, query, need_weights=False)[0]
        query = query * self.text_to_video(query, video, video, need_weights=False)[0]
        return query, video


def mamfusion_loss(
    query: Tensor,
    code: VideoCode,
    labels: Tensor,
    *,
    weights: tuple[float, float, float] = (0.027, 0.045, 0.015),
    margin: float = 0.2,
    scale: float = 32.0,
    delta: float = 0.2,
    negatives: Negatives = "random",
    generator: torch.Generator | None = None,
    gate: BatchGate | None = None,
) -> MamFusionLoss:
    """Compute the objective of encoded queries and videos; the defaults are TVR's.

        total = w_0 clip_nce + clip_triplet + w_1 frame_nce + frame_triplet + w_2 query_diverse

    Args:
        query: (Q, D), raw.
        code: Of V videos, raw.
        labels: (Q,) integers, the video of each query.
        weights: Of the clips' and frames' contrastive losses and the query-diverse loss.
        margin: Of the triplet losses.
        scale: Of the query-diverse loss.
        delta: Of the query-diverse loss.
        negatives: As in `triplet_loss`.
        generator: Of the random negatives.
        gate: Applied to the queries of the query-diverse loss; None: no gate.

    Returns:
        The total and its parts.

    Raises:
        TypeError: As `triplet_loss`.
        ValueError: As `triplet_loss`.
    """
    clip_raw, frame_raw = pair_scores(query, code)
    clip, frame = pair_cosines(query, code)
    triplets = [
        triplet_loss(scores, labels, margin=margin, negatives=negatives, generator=generator)
        for scores in (clip, frame)
    ]
    diverse = query if gate is None else gate(query, code.video)[0]
    parts = {
        "clip_nce": multi_positive_nce(clip_raw, labels),
        "clip_triplet": triplets[0],
        "frame_nce": multi_positive_nce(frame_raw, labels),
        "frame_triplet": triplets[1],
        "query_diverse": query_diverse_loss(diverse, labels, scale=scale, delta=delta),
    }
    factors = (weights[0], 1.0, weights[1], 1.0, weights[2])
    products = [factor * part for factor, part in zip(factors, parts.values(), strict=True)]
    return MamFusionLoss(torch.stack(products).sum(), **parts)
