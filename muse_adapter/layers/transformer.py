"""The standard pre-norm transformer layer, for what the heads are compared with."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class TransformerLayer(nn.Module):
    """Self-attention, then a perceptron four times as wide; each normalised first and added.

    Args:
        dim: Width D.
        heads: Attention heads; `dim` must be divisible by it.

    Raises:
        ValueError: `dim` is not divisible by `heads`.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got {dim} and {heads}")
        self.heads = heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, L, D).
            keep: Bool (B, L), True where a token may be attended to, at least once in each row.
                None: everywhere.

        Returns:
            (B, L, D).
        """
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b l (n h c) -> n b h l c", n=3, h=self.heads)
        mask = None if keep is None else keep[:, None, None, :]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(rearrange(y, "b h l c -> b l (h c)"))
        return x + self.mlp(self.norm2(x))
