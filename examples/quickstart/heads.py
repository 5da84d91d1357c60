"""The video heads that the study compares: patch tokens to one embedding per video."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from examples.quickstart.transformer import Block, position_embedding
from muse_adapter import MultiScaleMamba

MUSE_VARIANTS: dict[str, dict[str, Any]] = {
    "muse": {},
    "mamba": {"mixer": "mamba"},
    "attention": {"mixer": "attention"},
    "conv": {"mixer": "conv"},
    "frame_wise": {"aggregation": "frame_wise"},
    "spatial_wise": {"aggregation": "spatial_wise"},
}
"""MUSE and, after it, the paper's other mixers and aggregations: what differs from MUSE."""

HEADS = ("muse", "mean_pool", "temporal_transformer", *list(MUSE_VARIANTS)[1:])


def masked_mean(frames: Tensor, frame_mask: Tensor) -> Tensor:
    """Frames normalised, averaged over the real ones, normalised.

    Args:
        frames: (B, T, D).
        frame_mask: bool (B, T).

    Returns:
        (B, D), of unit norm.
    """
    keep = frame_mask[..., None]
    total = F.normalize(frames, dim=-1).masked_fill(~keep, 0).sum(dim=1)
    return F.normalize(total, dim=-1)


class MeanPool(nn.Module):
    """CLIP4Clip's meanP: the mean of the frames' class tokens. It has no parameters."""

    def forward(
        self, tokens: Tensor, frame_mask: Tensor, *, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, T, N, C) and bool (B, T) to (B, C), of unit norm. The grid changes nothing."""
        return masked_mean(tokens[:, :, 0], frame_mask)


class TemporalTransformer(nn.Module):
    """CLIP4Clip's seqTransf: a transformer over the frames' class tokens, added to them.

    Args:
        dim: width of the tokens.
        depth: transformer layers.
        num_frames: frames in a clip, at most.
    """

    def __init__(self, *, dim: int, depth: int, num_frames: int) -> None:
        super().__init__()
        self.positions = position_embedding(num_frames, dim)
        self.blocks = nn.ModuleList(Block(dim, heads=max(1, dim // 64)) for _ in range(depth))

    def forward(
        self, tokens: Tensor, frame_mask: Tensor, *, grid: tuple[int, int] | None = None
    ) -> Tensor:
        """(B, T, N, C) and bool (B, T) to (B, C), of unit norm. The grid changes nothing."""
        frames = tokens[:, :, 0]
        x = frames + self.positions[: frames.shape[1]]
        for block in self.blocks:
            x = block(x, frame_mask)
        return masked_mean(frames + x, frame_mask)


def build_head(name: str, *, dim: int, depth: int, num_frames: int) -> nn.Module:
    """The head of a name in `HEADS`.

    Args:
        name: the head.
        dim: width of the tokens and of the embedding.
        depth: layers; mean pooling has none.
        num_frames: frames in a clip, at most.

    Raises:
        ValueError: for another name.
    """
    if name in MUSE_VARIANTS:
        return MultiScaleMamba(dim=dim, depth=depth, **MUSE_VARIANTS[name])
    if name == "mean_pool":
        return MeanPool()
    if name == "temporal_transformer":
        return TemporalTransformer(dim=dim, depth=depth, num_frames=num_frames)
    raise ValueError(f"head must be one of {', '.join(HEADS)}, got {name!r}")
