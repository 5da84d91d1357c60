"""What MamFusion stores of a video, and how queries are compared with it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.layers.pairs import cosines, score_pairs, unit

CLIP_WEIGHT = 0.7


class VideoCode(NamedTuple):
    """Vectors of videos, not normalised.

    Attributes:
        clips: (B, K, D), one of each clip.
        video: (B, D), one of all frames.
    """

    clips: Tensor
    video: Tensor

    def folded(self, *, clip_weight: float = CLIP_WEIGHT) -> Tensor:
        """Fold the score into the clips' vectors, which is what an index stores.

            folded_k = weight * unit(clip_k) + (1 - weight) * unit(video)

        Args:
            clip_weight: Of the clips against the whole video, as in `MamFusion.similarity`.

        Returns:
            (B, K, D). The largest inner product with a query of unit norm is the score of the
            video, and the clip that has it is the best one.
        """
        return clip_weight * unit(self.clips) + (1 - clip_weight) * unit(self.video)[:, None]


def pair_scores(query: Tensor, code: VideoCode) -> tuple[Tensor, Tensor]:
    """Compare queries with the best clip and with the frames of each video.

    Args:
        query: (Q, D).
        code: Of B videos.

    Returns:
        The largest inner product with a clip, and that with `video`, both (Q, B), in float32 at
        least.
    """

    def score(query: Tensor, clips: Tensor, video: Tensor) -> tuple[Tensor, Tensor]:
        return cosines(query, clips).amax(1), video @ query.T

    query, clips, video = (
        x.to(torch.promote_types(x.dtype, torch.float32)) for x in (query, *code)
    )
    clip, frame = score_pairs(score, (query,), (clips, video), clips.shape[1])
    return clip, frame


def pair_cosines(query: Tensor, code: VideoCode) -> tuple[Tensor, Tensor]:
    """Compute `pair_scores` of vectors of unit norm."""
    return pair_scores(unit(query), VideoCode(unit(code.clips), unit(code.video)))
