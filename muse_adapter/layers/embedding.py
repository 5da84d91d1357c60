"""The input block of MamFusion: features to tokens with learned positions."""

from __future__ import annotations

from torch import Tensor, nn


class FeatureEmbedding(nn.Module):
    """Project features and add learned positions.

        y = dropout(LayerNorm(ReLU(proj(dropout(LayerNorm(x)))) + positions))

    Args:
        in_dim: Width C of the features.
        dim: Width D.
        max_length: Most tokens of a sequence: as many have a position.
        dropout: Rate.
    """

    def __init__(self, in_dim: int, dim: int, max_length: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm_in = nn.LayerNorm(in_dim)
        self.proj = nn.Linear(in_dim, dim)
        self.positions = nn.Embedding(max_length, dim)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Embed features (B, L, C) to (B, L, D); L is at most `max_length`."""
        y = self.proj(self.dropout(self.norm_in(x))).relu()
        return self.dropout(self.norm(y + self.positions.weight[: x.shape[1]]))
