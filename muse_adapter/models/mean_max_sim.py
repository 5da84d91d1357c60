"""MeanMaxSim: Video-ColBERT's late interaction at two levels (Reddy et al., CVPR 2025)."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from muse_adapter.layers.interaction import late_interaction
from muse_adapter.models.eercf_objective import weighted_sum


class MeanMaxSimScores(NamedTuple):
    """Scores of all pairs, each (A, B), or None for a level of weight 0.

    Attributes:
        frame: Of the words and the backbone's class tokens.
        video: Of the words and the head's frame features.
    """

    frame: Tensor | None
    video: Tensor | None


class MeanMaxSim(nn.Module):
    """Compare the words of texts with the frames of videos, before and after the head.

        MMS(a, b)   = mean over words w of max over frames t of cos(word_aw, feature_bt)
        frame[a, b] = MMS of the backbone's class tokens
        video[a, b] = MMS of the head's frame features
        score       = weights[0] * frame + weights[1] * video

    `VideoTextModel` trains it with Video-ColBERT's dual loss, one loss for each level, so that
    each is good on its own:

        loss = weights[0] * L(scale * frame + bias) + weights[1] * L(scale * video + bias)

    L is `sigmoid_loss`, as in the paper, or `contrastive_loss`, without the bias. Both levels share
    the scale and the bias. The paper's expansion tokens (padding of queries that counts as words,
    learned tokens beside the frames) are no part of it. It has no parameters.

    Args:
        weights: Of the two levels, in the score and in the loss. A level of weight 0 is not
            computed.

    Raises:
        ValueError: The weights are not two, are negative, or are both 0.
    """

    def __init__(self, weights: tuple[float, float] = (1.0, 1.0)) -> None:
        super().__init__()
        if len(weights) != 2 or min(weights) < 0 or not any(weights):
            raise ValueError(
                f"weights must be two numbers, not negative and not both 0, got {weights}"
            )
        self.weights = weights

    def forward(
        self,
        words: Tensor,
        frames: Tensor,
        fused: Tensor,
        word_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute the score of all pairs; arguments as in `scores`.

        Returns:
            (A, B).
        """
        return weighted_sum(self.weights, self.scores(words, frames, fused, word_mask, frame_mask))

    def scores(
        self,
        words: Tensor,
        frames: Tensor,
        fused: Tensor,
        word_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> MeanMaxSimScores:
        """Compute the scores of both levels.

        Args:
            words: (A, W, D), floating point; need not be normalised, like all features.
            frames: (B, T, D), the backbone's class tokens.
            fused: (B, T, D), the head's frame features.
            word_mask: (A, W), True or 1 for a word; None: all are words.
            frame_mask: (B, T), True or 1 for a real frame; None: all are real.

        Returns:
            (A, B) each; 0, with gradient 0, for a text without a word or a video without a real
            frame.

        Raises:
            TypeError: A tensor is of the wrong type.
            ValueError: The shapes do not fit, or a mask has values other than 0 and 1.
        """
        levels = zip(self.weights, (frames, fused), strict=True)
        return MeanMaxSimScores(
            *(
                late_interaction(words, features, word_mask, frame_mask) if weight else None
                for weight, features in levels
            )
        )

    def extra_repr(self) -> str:
        """Return the settings shown by `repr`."""
        return f"weights={self.weights}"
