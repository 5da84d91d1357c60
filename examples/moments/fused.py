"""Fused reranking: the clip branch makes a shortlist, temporal fusion ranks it pair by pair."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.moments.features import Features
from examples.moments.models import ClipModel
from examples.quickstart.train import MAX_LOGIT_SCALE
from muse_adapter import VideoCode
from muse_adapter.training.losses import contrastive_loss

SHORTLIST = 20  # videos that are reranked
CANDIDATES = 6  # of a sentence in training, the own video first
SENTENCES = 32  # of a batch, drawn for the fusion
BLOCK = 64  # sentences scored at once


class FusedModel(ClipModel):
    """MamFusion's clip branch and temporal fusion, trained together; arguments of `ClipModel`."""

    def loss(self, features: Features) -> Tensor:
        """Compute the contrastive losses of all pairs of a batch and of hard candidates, fused."""
        code = self.encode_video(features)
        scale = self.logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
        scores = self._clip_scores(features, code)
        logits = (scale * scores).masked_fill(features.others, -math.inf)
        rows = torch.randperm(len(scores))[:SENTENCES]
        own = features.video[rows, None]
        # The own video comes first, then the most similar ones of which the sentence is not true.
        wrong = scores[rows].detach().masked_fill(features.others[rows], -math.inf)
        wrong = wrong.scatter(1, own, math.inf)
        candidates = wrong.topk(min(CANDIDATES, wrong.shape[1]), dim=1).indices
        fused = scale * self._fused(features, rows, code, candidates)
        fused = fused.masked_fill(features.others[rows].gather(1, candidates), -math.inf)
        target = torch.zeros(len(rows), dtype=torch.long)
        return contrastive_loss(logits, features.video) + F.cross_entropy(fused, target)

    def score(self, features: Features) -> Tensor:
        """Score all sentences against all videos: (Q, V), the shortlists above the rest."""
        code = self.encode_video(features)
        scores = self._clip_scores(features, code)
        candidates = scores.topk(min(SHORTLIST, scores.shape[1]), dim=1).indices
        fused = torch.cat(
            [
                self._fused(features, rows, code, candidates[rows])
                for rows in torch.arange(len(scores)).split(BLOCK)
            ]
        )
        above = scores.max() - fused.min() + 1
        return scores.scatter(1, candidates, fused + above)

    def _clip_scores(self, features: Features, code: VideoCode) -> Tensor:
        return self.model.similarity(self.encode_text(features), code, clip_weight=self.clip_weight)

    def _fused(
        self, features: Features, rows: Tensor, code: VideoCode, candidates: Tensor
    ) -> Tensor:
        """Score the candidates (R, K) of some sentences (R,), after fusion: (R, K)."""
        return self.model.fused_similarity(
            features.words[rows],
            features.word_mask[rows],
            VideoCode(code.clips[candidates], code.video[candidates]),
            sentence=features.sentences[rows],
            clip_weight=self.clip_weight,
        )
