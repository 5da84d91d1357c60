"""The branches of MamFusion: videos through windows and Mamba, words through attention."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from muse_adapter.config import MamFusionConfig
from muse_adapter.layers.block import PostNormLayer
from muse_adapter.layers.checkpointing import checkpointed
from muse_adapter.layers.embedding import FeatureEmbedding
from muse_adapter.layers.feature_checks import check_features, check_mask
from muse_adapter.layers.gaussian import GaussianBlock, WindowedAttention
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.pool import AttentionPool
from muse_adapter.models.mamfusion_inputs import check_width, keep_mask, normalise, to_front

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


class EncodedWords(NamedTuple):
    """Words of sentences after the word branch.

    Attributes:
        tokens: (Q, W, D), valid words first.
        keep: Bool (Q, W), which of them are valid, at least one of each sentence.
        real: Bool (Q,), which sentences have a word; None: all.
    """

    tokens: Tensor
    keep: Tensor
    real: Tensor | None

    def for_pairs(self) -> EncodedWords:
        """Add an axis of videos behind that of the sentences."""
        real = None if self.real is None else self.real[:, None]
        return EncodedWords(self.tokens[:, None], self.keep[:, None], real)


class WordBranch(nn.Module):
    """Input block, an attention layer without a window, and attention pooling.

    Args:
        config: The settings.
    """

    def __init__(self, config: MamFusionConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = FeatureEmbedding(
            config.text_width, config.hidden, config.max_words, dropout=config.input_dropout
        )
        self.attention = WindowedAttention(config.hidden, config.heads, dropout=config.dropout)
        self.pool = AttentionPool(config.hidden)
        self.projection: nn.Linear | None = None
        if config.residual == "concat":
            self.projection = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(
        self, words: Tensor, word_mask: Tensor | None, sentence: Tensor | None
    ) -> EncodedWords:
        """Encode words; arguments and errors as in `MamFusion.encode_text`."""
        if (sentence is not None) != (self.projection is not None):
            raise ValueError(
                'sentence must be given with residual="concat", and only then, got '
                f"{'one' if sentence is not None else 'none'} with {self.config.residual!r}"
            )
        sizes = check_features(words=(words, "Q W C"), sentence=(sentence, "Q C"))
        check_width("words", sizes["C"], self.config.text_width)
        mask = check_mask("word_mask", word_mask, (sizes["Q"], sizes["W"]))
        words, lengths, real = to_front(words, mask, self.pool.score.weight.dtype)
        words = normalise(words[:, : self.config.max_words])
        keep = keep_mask(lengths, words.shape[1])
        return EncodedWords(self.encode(words, keep), keep, real)

    def encode(self, words: Tensor, keep: Tensor | None = None) -> Tensor:
        """Encode words (Q, W, C) that are normalised already, to (Q, W, D); `keep` as above."""
        return self.attention(self.embed(words), keep)

    def query(self, words: EncodedWords, sentence: Tensor | None) -> Tensor:
        """Make queries of encoded words.

        Args:
            words: Of sentences (Q, W, D), or of pairs (Q, B, W, D).
            sentence: (Q, C), with `residual="concat"`.

        Returns:
            (Q, D), or (Q, B, D); what is learned is zero for a sentence without a word.
        """
        pooled = self.pool(words.tokens, words.keep)
        if self.projection is not None:
            pooled = self.projection(pooled)
        if words.real is not None:
            pooled = torch.where(words.real[..., None], pooled, 0)
        if sentence is None:
            return pooled
        given = normalise(sentence.to(pooled.dtype))
        given = given if pooled.dim() == 2 else given[:, None].expand(-1, pooled.shape[1], -1)
        return torch.cat([given, pooled], dim=-1)
