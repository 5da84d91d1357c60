"""The trained methods: each scores sentences against videos, and has a loss of a batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.moments.features import Features
from examples.moments.settings import RunSettings
from examples.quickstart.train import MAX_LOGIT_SCALE
from muse_adapter import MamFusion, VideoCode
from muse_adapter.training.losses import contrastive_loss

LABELS = {
    "max_frames": "maximum over frames",
    "windows": "sliding windows",
    "gaussian": "GMMFormer's blocks, no Mamba",
    "mamba": "Mamba alone",
    "mamfusion": "MamFusion, clip branch",
    "both": "MamFusion, both branches",
    "published": "MamFusion as published",
    "muse": "MUSE over windows",
    "fused": "MamFusion, fused reranking",
}


class Skip(nn.Module):
    """Stands where a layer is left out."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return x."""
        return x


class MomentModel(nn.Module):
    """What is trained, evaluated and kept of a method."""

    model: nn.Module

    def score(self, features: Features) -> Tensor:
        """Score all sentences against all videos: (Q, V)."""
        raise NotImplementedError

    def loss(self, features: Features) -> Tensor:
        """Compute the loss of a batch, the videos with all their sentences."""
        raise NotImplementedError


class ClipModel(MomentModel):
    """MamFusion on the frozen alignment, trained by a contrastive loss of its scores.

    Args:
        settings: Settings of the run; the method says which layers are left out, whether the
            frame branch counts too ("both"), and whether pairs are fused ("fused").
        width: Width of the features.
    """

    model: MamFusion

    def __init__(self, settings: RunSettings, width: int) -> None:
        super().__init__()
        both = settings.method == "both"
        # The frame branch is always there; of one frame, the mean of all, it costs next to nothing.
        self.model = mamfusion(
            settings,
            width,
            residual="concat",
            max_frames=settings.max_frames if both else 1,
            fusion=settings.method == "fused",
        )
        self.clip_weight = 0.7 if both else 1.0
        branch = self.model.clip_branch
        if settings.method == "gaussian":
            branch.mamba = nn.ModuleList(Skip() for _ in branch.mamba)
        if settings.method == "mamba":
            branch.gaussian = nn.ModuleList(Skip() for _ in branch.gaussian)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def score(self, features: Features) -> Tensor:
        """Score all sentences against all videos: (Q, V)."""
        return self.model.similarity(
            self.encode_text(features), self.encode_video(features), clip_weight=self.clip_weight
        )

    def encode_text(self, features: Features) -> Tensor:
        """Encode the sentences: (Q, D)."""
        return self.model.encode_text(
            features.words, features.word_mask, sentence=features.sentences
        )

    def encode_video(self, features: Features) -> VideoCode:
        """Encode the videos."""
        return self.model.encode_video(features.frames, features.frame_mask)

    def loss(self, features: Features) -> Tensor:
        """Compute the contrastive loss of a batch; other true videos are no negatives."""
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = (scale * self.score(features)).masked_fill(features.others, -math.inf)
        return contrastive_loss(logits, features.video)


class PublishedModel(MomentModel):
    """MamFusion with both branches and the losses of its code, without a residual.

    Args:
        settings: Settings of the run.
        width: Width of the features.
    """

    model: MamFusion

    def __init__(self, settings: RunSettings, width: int) -> None:
        super().__init__()
        self.model = mamfusion(settings, width, residual=None, max_frames=settings.max_frames)

    def score(self, features: Features) -> Tensor:
        """Score all sentences against all videos: (Q, V)."""
        query = self.model.encode_text(features.words, features.word_mask)
        return self.model.similarity(
            query, self.model.encode_video(features.frames, features.frame_mask)
        )

    def loss(self, features: Features) -> Tensor:
        """Compute the published loss of a batch."""
        return self.model.loss(
            features.words,
            features.word_mask,
            features.frames,
            features.frame_mask,
            features.video,
        ).total


def mamfusion(
    settings: RunSettings,
    width: int,
    *,
    residual: str | None,
    max_frames: int,
    fusion: bool = False,
) -> MamFusion:
    """Build MamFusion in the size of a run."""
    return MamFusion(
        visual_width=width,
        text_width=width,
        hidden=settings.hidden,
        heads=settings.heads,
        num_clips=settings.num_clips,
        max_frames=max_frames,
        dropout=settings.dropout,
        input_dropout=settings.dropout,
        residual=residual,
        fusion=fusion,
    )
