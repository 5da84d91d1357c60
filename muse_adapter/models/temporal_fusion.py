"""Fusion of the words of a sentence with the clips of a video, along time, for each pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_adapter.config import MamFusionConfig
from muse_adapter.layers.block import PostNormLayer
from muse_adapter.layers.cross_attention import CrossAttention
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.pairs import unit


class TemporalFusion(nn.Module):
    """What MamFusion's paper describes and its code does not do; the layers are ours.

        clips' = clips + attention from the clips to the words    (T-to-V)
        words' = words + attention from the words to the clips'   (V-to-T)

    A query made of words' is compared with clips'. The products of the two, clip after clip, pass
    a layer of Mamba in both directions, and a linear map of it is added to the clips' scores. It
    starts as the identity: the last maps of both attentions and of the score are zero.

    Args:
        config: The settings.
        dim: Width D of clips and queries.
    """

    def __init__(self, config: MamFusionConfig, dim: int) -> None:
        super().__init__()
        hidden, heads = config.hidden, config.heads
        self.text_to_video = CrossAttention(dim, hidden, hidden, heads)
        self.video_to_text = CrossAttention(hidden, dim, hidden, heads)
        mixer = BiMamba(dim, d_state=config.d_state, d_conv=config.d_conv)
        self.time = PostNormLayer(dim, mixer)
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, words: Tensor, keep: Tensor, clips: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse the sequences of pairs.

        Args:
            words: (Q, 1, W, hidden).
            keep: Bool (Q, 1, W), at least one True in each row.
            clips: (B, K, D), all pairs; or (Q, B, K, D), the candidates of each query.

        Returns:
            The words (Q, B, W, hidden) and the clips (Q, B, K, D) of each pair.
        """
        clips = self.text_to_video(clips, words, keep)
        return self.video_to_text(words, clips), clips

    def clip_scores(self, query: Tensor, clips: Tensor) -> Tensor:
        """Compare fused queries and clips.

        Args:
            query: (Q, B, D).
            clips: (Q, B, K, D).

        Returns:
            The cosines (Q, B, K), plus what is learned.
        """
        products = unit(query)[:, :, None] * unit(clips)
        through_time = self.time(products.to(self.score.weight.dtype).flatten(0, 1))
        learned = self.score(through_time)[..., 0].unflatten(0, products.shape[:2])
        return products.sum(-1) + learned

    @torch.no_grad()
    def zero_init_output(self) -> None:
        """Set the last linear maps to zero, so that the fusion starts as the identity."""
        self.text_to_video.zero_init_output()
        self.video_to_text.zero_init_output()
        nn.init.zeros_(self.score.weight)
