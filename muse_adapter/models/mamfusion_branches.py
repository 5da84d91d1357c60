"""The branches of MamFusion: videos through windows and Mamba, words through attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.config import MamFusionConfig
from muse_adapter.layers.block import PostNormLayer
from muse_adapter.layers.checkpointing import checkpointed
from muse_adapter.layers.embedding import FeatureEmbedding
from muse_adapter.layers.gaussian import GaussianBlock, WindowedAttention
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.pool import AttentionPool

DEPTH = 2


class VideoBranch(nn.Module):
    """Input block, then twice a Gaussian block and a layer of Mamba in one direction.

    Args:
        config: The settings.
        max_length: Most tokens of a sequence.
    """

    def __init__(self, config: MamFusionConfig, max_length: int) -> None:
        super().__init__()
        dim = config.hidden
        self.grad_checkpointing = False
        self.embed = FeatureEmbedding(
            config.visual_width, dim, max_length, dropout=config.input_dropout
        )
        self.gaussian = nn.ModuleList(
            GaussianBlock(dim, config.heads, dropout=config.dropout) for _ in range(DEPTH)
        )
        self.mamba = nn.ModuleList(
            PostNormLayer(
                dim,
                BiMamba(
                    dim,
                    d_state=config.d_state,
                    d_conv=config.d_conv,
                    expand=config.expand,
                    bidirectional=False,
                ),
            )
            for _ in range(DEPTH)
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Encode sequences.

        Args:
            x: (B, L, C).
            lengths: (B,) valid tokens, standing in front, at least 1 each; None: all.

        Returns:
            (B, L, D).
        """
        x = self.embed(x)
        for gaussian, mamba in zip(self.gaussian, self.mamba, strict=True):
            x = self._run(mamba, self._run(gaussian, x, lengths), lengths)
        return x

    def _run(self, module: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpointed(module, x, *args)
        return module(x, *args)


class WordBranch(nn.Module):
    """Input block, an attention layer without a window, and attention pooling.

    Args:
        config: The settings.
    """

    def __init__(self, config: MamFusionConfig) -> None:
        super().__init__()
        self.embed = FeatureEmbedding(
            config.text_width, config.hidden, config.max_words, dropout=config.input_dropout
        )
        self.attention = WindowedAttention(config.hidden, config.heads, dropout=config.dropout)
        self.pool = AttentionPool(config.hidden)

    def forward(self, words: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode sentences.

        Args:
            words: (Q, W, C).
            keep: Bool (Q, W), at least one True in each row; None: all.

        Returns:
            (Q, D).
        """
        return self.pool(self.attention(self.embed(words), keep), keep)
