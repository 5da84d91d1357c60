"""Attention under Gaussian windows of several widths (GMMFormer's block, in MamFusion)."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

WIDTHS = (None, 0.5, 1.0, 5.0)


def gaussian_window(lengths: Tensor, size: int, width: float, *, dtype: torch.dtype) -> Tensor:
    """Compute the factors on attention scores, over each sequence's own length.

        g_ij = exp(-(x_j - c_i)^2 / (2 sigma^2)) / max over j of the same
        x_j = j / (length - 1),  c_i = i / length,  sigma = max(width, 0.01) / 9

    The centres slide off the positions by up to 1 / length, as published.

    Args:
        lengths: (B,) valid tokens, standing in front; 0 counts as 1.
        size: L.
        width: Of the window; sigma is a ninth of it, as a fraction of the length.
        dtype: Of the result.

    Returns:
        (B, L, L) in [0, 1], at most 1 in each valid row; behind the length anything finite.
    """
    lengths = lengths.clamp(min=1).to(dtype)[:, None]
    steps = torch.arange(size, device=lengths.device, dtype=dtype)
    keys, centres = steps / (lengths - 1).clamp(min=1), steps / lengths
    sigma = max(width, 0.01) / 9
    exponents = -((keys[:, None] - centres[:, :, None]) / sigma).square() / 2
    # Valid centres are below 1, the last valid key is at 1: no key behind it is the nearest.
    return (exponents - exponents.amax(-1, keepdim=True)).exp()


class WindowedAttention(nn.Module):
    """BERT's attention layer, with scores that are multiplied by a Gaussian window.

        y = LayerNorm(x + dropout(out(softmax(q k^T / sqrt(D / heads) * window) v)))

    Scores are multiplied, not masked: a far token has logit 0, which is more than a near token has
    with a negative score, as published.

    Args:
        dim: Width D.
        heads: Attention heads; `dim` must be divisible by it.
        dropout: Rate, on the attention weights and on the output.

    Raises:
        ValueError: `dim` is not divisible by `heads`.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got {dim} and {heads}")
        self.heads = heads
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, keep: Tensor | None = None, window: Tensor | None = None
    ) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, L, D).
            keep: Bool (B, L), True for the tokens to attend to, at least one in each row; None:
                all.
            window: (B or 1, L, L) factors on the scores; None: 1.

        Returns:
            (B, L, D).
        """
        q, k, v = (
            rearrange(linear(x), "b l (h c) -> b h l c", h=self.heads)
            for linear in (self.query, self.key, self.value)
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5  # (B, heads, L, L)
        if window is not None:
            scores = scores * window.to(scores.dtype)[:, None]
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], torch.finfo(scores.dtype).min)
        y = rearrange(self.dropout(scores.softmax(-1)) @ v, "b h l c -> b l (h c)")
        return self.norm(x + self.dropout(self.out(y)))


class GaussianBlock(nn.Module):
    """The mean of four attention layers, under no window and under windows of three widths.

    Args:
        dim: Width D.
        heads: Attention heads.
        dropout: Rate in the layers.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(WindowedAttention(dim, heads, dropout=dropout) for _ in WIDTHS)

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B, L, D).
            lengths: (B,) valid tokens, standing in front, at least 1 each; None: all. Windows lie
                over the valid tokens.

        Returns:
            (B, L, D).
        """
        size = x.shape[1]
        positions = torch.arange(size, device=x.device)
        keep = None if lengths is None else positions < lengths[:, None]
        over = torch.tensor([size], device=x.device) if lengths is None else lengths
        dtype = torch.promote_types(x.dtype, torch.float32)
        windows = (
            None if width is None else gaussian_window(over, size, width, dtype=dtype)
            for width in WIDTHS
        )
        outputs = [layer(x, keep, w) for layer, w in zip(self.layers, windows, strict=True)]
        return torch.stack(outputs).mean(0)
