"""The two towers, transformers small enough to learn from nothing on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from examples.quickstart.tokenizer import PAD
from muse_adapter.layers.transformer import TransformerLayer

# As large as what they are added to: a tower that learns from nothing has no time to find places.
POSITION_STD = 0.3
HEADS = 4


class ImageTower(nn.Module):
    """A vision transformer that returns all its tokens, normalised, as CLIP's would be.

    Args:
        size: Side of a frame in pixels.
        patch: Side of a patch in pixels; `size` must be divisible by it.
        width: Width of the tokens.
        layers: Transformer layers.
    """

    def __init__(self, *, size: int, patch: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = _positions(1 + (size // patch) ** 2, width)
        self.blocks = nn.ModuleList(TransformerLayer(width, HEADS) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Encode images.

        Args:
            images: Float (B*T, 3, size, size), normalised.

        Returns:
            (B*T, 1 + H*W, C), the class token first, then the grid row by row.
        """
        patches = rearrange(self.embed(images), "m c h w -> m (h w) c")
        first = self.class_token.expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class TextTower(nn.Module):
    """Token ids of `WordTokenizer` to one embedding per text, the mean over its tokens.

    The mean gives every word a share from the beginning; the start token alone would have to find
    the words first. It is there so that a text without a known word has something to average.

    Args:
        vocabulary: Number of tokens.
        length: Most tokens of a text.
        width: Width of the tower and of the embedding.
        layers: Transformer layers.
    """

    def __init__(self, *, vocabulary: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.3)
        self.positions = _positions(length, width)
        self.blocks = nn.ModuleList(TransformerLayer(width, HEADS) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, ids: Tensor) -> Any:  # a `WordTower` returns a pair
        """Encode texts: int64 (B, L) to (B, D), not normalised."""
        words, keep = self.encode_words(ids)
        kept = keep[..., None]
        return self.project((words * kept).sum(1) / kept.sum(1))

    def encode_words(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode the words of texts, before the mean over them and its projection.

        Args:
            ids: int64 (B, L).

        Returns:
            (B, W, D) and the mask (B, W), W the tokens of the longest text.
        """
        keep = ids != PAD
        length = int(keep.sum(dim=1).max())  # columns that are padding in every text cost time only
        keep = keep[:, :length]
        x = self.words(ids[:, :length]) + self.positions[:length]
        for block in self.blocks:
            x = block(x, keep)
        return self.norm(x), keep


class WordTower(TextTower):
    """The same tower without the mean: words (B, W, D) and their mask (B, W)."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Encode texts: int64 (B, L) to words, not normalised, and their mask."""
        words, keep = self.encode_words(ids)
        return self.project(words), keep


def _positions(count: int, width: int) -> nn.Parameter:
    return nn.Parameter(POSITION_STD * torch.randn(count, width))
