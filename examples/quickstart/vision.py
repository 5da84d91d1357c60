"""Frames to patch tokens: a vision transformer small enough to learn from nothing on a CPU."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from examples.quickstart.transformer import Block, position_embedding


class TinyViT(nn.Module):
    """A vision transformer that returns all its tokens, normalised, as CLIP's would be.

    Args:
        size: side of a frame in pixels.
        patch: side of a patch in pixels; `size` must be divisible by it.
        width: width of the tokens.
        layers: transformer layers.
    """

    def __init__(self, *, size: int, patch: int, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, patch, stride=patch)
        self.class_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = position_embedding(1 + (size // patch) ** 2, width)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, images: Tensor) -> Tensor:
        """Args:
            images: float (B*T, 3, size, size), normalised.

        Returns:
            (B*T, 1 + H*W, C), the class token first, then the grid row by row.
        """
        patches = rearrange(self.embed(images), "m c h w -> m (h w) c")
        first = self.class_token.expand(len(images), 1, -1)
        x = torch.cat([first, patches], dim=1) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.norm(x)
