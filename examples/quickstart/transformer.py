"""The transformer block of the image tower, the text tower and the temporal transformer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-norm transformer block: self-attention, then a two-layer perceptron.

    Args:
        width: width of the tokens.
        heads: attention heads; `width` must be divisible by it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Args:
            x: (B, L, C).
            keep: bool (B, L), True where a token may be attended to. None: everywhere.

        Returns:
            (B, L, C).
        """
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b l (n h c) -> n b h l c", n=3, h=self.heads)
        mask = None if keep is None else keep[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(rearrange(y, "b h l c -> b l (h c)"))
        return x + self.mlp(self.norm2(x))


def position_embedding(count: int, width: int) -> nn.Parameter:
    """A learned embedding (count, width), drawn from N(0, 0.3^2).

    As large as what it is added to: a tower that learns from nothing has no time to find places.
    """
    return nn.Parameter(0.3 * torch.randn(count, width))
