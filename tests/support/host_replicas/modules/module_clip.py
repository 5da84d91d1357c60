"""A very small CLIP with the interface of the hosts' CLIP."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Tower(nn.Module):
    """An image tower: patch embedding, class token, positions, one transformer layer."""

    def __init__(self, width: int, dim: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, patch, patch, bias=False)
        self.class_embedding = nn.Parameter(0.1 * torch.randn(width))
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(tokens, width))
        self.transformer = nn.TransformerEncoderLayer(width, 2, width, 0.0, batch_first=True)
        self.ln_post = nn.LayerNorm(width)
        self.proj = nn.Parameter(width**-0.5 * torch.randn(width, dim))

    def forward(self, frames: Tensor) -> Tensor:
        patches = self.conv1(frames).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(len(patches), 1, -1)
        return self.transformer(torch.cat([first, patches], 1) + self.positional_embedding)


class CLIP(nn.Module):
    """Embed frames and words in one space."""

    def __init__(self, shapes: dict[str, Tensor]) -> None:
        super().__init__()
        width, dim = shapes["visual.proj"].shape
        tokens = len(shapes["visual.positional_embedding"])
        vocabulary, text_width = shapes["token_embedding.weight"].shape
        patch = shapes["visual.conv1.weight"].shape[-1]
        self.visual = Tower(width, dim, patch, tokens)
        self.token_embedding = nn.Embedding(vocabulary, text_width)
        self.text_projection = nn.Parameter(text_width**-0.5 * torch.randn(text_width, dim))
        self.logit_scale = nn.Parameter(torch.tensor(2.0))

    def encode_image(self, image: Tensor, return_hidden: bool = False, video_frame: int = -1):
        tokens = self.visual.ln_post(self.visual(image)) @ self.visual.proj
        feature = tokens[:, 0]
        if return_hidden:
            return feature, tokens
        return feature

    def encode_text(self, words: Tensor) -> Tensor:
        return self.token_embedding(words) @ self.text_projection
