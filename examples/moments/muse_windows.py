"""MUSE over sliding windows: every window of a video is embedded from all its patch tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from examples.moments.features import Features
from examples.moments.models import MomentModel, mamfusion
from examples.moments.settings import RunSettings
from examples.moments.untrained import STRIDE
from examples.quickstart.train import MAX_LOGIT_SCALE
from muse_adapter import MultiScaleMamba
from muse_adapter.layers.pairs import unit
from muse_adapter.training.losses import contrastive_loss

LENGTH, STEP = 16, 2  # frames of a window, of which every second is read
DEPTH = 2
BLOCK = 64  # windows embedded at once


class MuseWindows(MomentModel):
    """MUSE's head beside the frozen features; of a video the best window counts.

    No times are known in training: the window of a sentence is the one of its video that is most
    similar to it in the frozen features.

    Args:
        settings: Settings of the run.
        width: Width of the features.
    """

    def __init__(self, settings: RunSettings, width: int) -> None:
        super().__init__()
        self.model = MultiScaleMamba(dim=width, depth=DEPTH, dropout=settings.dropout)
        self.text = mamfusion(settings, width, residual="concat", max_frames=1)
        self.projection = nn.Linear(width, settings.hidden, bias=False)
        nn.init.zeros_(self.projection.weight)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def loss(self, features: Features) -> Tensor:
        """Compute the contrastive loss of the sentences of a batch and their windows."""
        means, inside, starts = _windows(features)
        cosines = torch.einsum("qd,qwd->qw", unit(features.sentences), means[features.video])
        best = cosines.masked_fill(~inside[features.video], -1).argmax(1)
        windows = self._embed(features, features.video, starts[best])
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        logits = scale * self._texts(features) @ windows.T
        # (Q, Q): the sentences that are true of the video of a window, its own sentence aside.
        return contrastive_loss(logits.masked_fill(features.others[:, features.video], -math.inf))

    def score(self, features: Features) -> Tensor:
        """Score all sentences against all videos: (Q, V)."""
        _, inside, starts = _windows(features)
        video, place = inside.nonzero(as_tuple=True)
        blocks = zip(video.split(BLOCK), place.split(BLOCK), strict=True)
        windows = torch.cat([self._embed(features, v, starts[p]) for v, p in blocks])
        cosines = self._texts(features) @ windows.T
        lowest = cosines.new_full((len(cosines), len(inside)), -1)
        return lowest.scatter_reduce(1, video.expand_as(cosines), cosines, "amax")

    def _embed(self, features: Features, video: Tensor, start: Tensor) -> Tensor:
        """Embed windows (M,): [mean of the frozen class tokens ; projection of MUSE], (M, D)."""
        assert features.tokens is not None
        frames = start[:, None] + torch.arange(0, LENGTH, STEP)
        tokens = features.tokens[video[:, None], frames].float()  # (M, F, N, D)
        frozen = unit(unit(tokens[:, :, 0]).mean(1))
        return unit(torch.cat([frozen, self.projection(self.model(tokens))], dim=-1))

    def _texts(self, features: Features) -> Tensor:
        return unit(
            self.text.encode_text(features.words, features.word_mask, sentence=features.sentences)
        )


def _windows(features: Features) -> tuple[Tensor, Tensor, Tensor]:
    """Return the windows' means (V, W, D), which are real (V, W), and first frames (W,)."""
    means = unit(unit(features.frames).unfold(1, LENGTH, STRIDE).mean(-1))
    inside = features.frame_mask.unfold(1, LENGTH, STRIDE).all(-1)
    return means, inside, STRIDE * torch.arange(means.shape[1])
