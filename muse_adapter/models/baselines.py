"""CLIP4Clip's video heads, meanP and seqTransf, called like `MultiScaleMamba`.

They read the frames' class tokens alone. Whoever considers the multi-scale head compares it with
these first.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from muse_adapter.config import ATTENTION_HEAD_DIM
from muse_adapter.layers.pool import mean_pool
from muse_adapter.layers.tokens import as_frame_mask, as_video_tokens
from muse_adapter.layers.transformer import TransformerLayer


class MeanPool(nn.Module):
    """The mean of the frames' class tokens (CLIP4Clip's meanP). It has no parameters."""

    def forward(
        self,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        *,
        num_frames: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Embed videos; arguments, result and errors as in `MultiScaleMamba.forward`.

        The class token comes first, tokens have the width D, and `grid` changes nothing.
        """
        frames = self.forward_features(tokens, frame_mask, num_frames=num_frames, grid=grid)
        return mean_pool(frames, None if frame_mask is None else frame_mask.to(torch.bool))

    def forward_features(
        self,
        tokens: Tensor,
        frame_mask: Tensor | None = None,
        *,
        num_frames: int | None = None,
        grid: tuple[int, int] | None = None,
    ) -> Tensor:
        """Compute frame features; arguments and errors as in `forward`.

        Returns:
            (B, T, D). At a masked frame, its class token as it came in.
        """
        frames = as_video_tokens(tokens, num_frames)[:, :, 0]
        mask = as_frame_mask(frame_mask, (frames.shape[0], frames.shape[1]), frames.device)
        return self._fuse(frames, mask)

    def forward_head(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Pool frame features (B, T, D) to (B, D), as `MultiScaleMamba.forward_head` does."""
        mask = as_frame_mask(frame_mask, (frames.shape[0], frames.shape[1]), frames.device)
        return mean_pool(frames, mask)

    def _fuse(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        """Frame features (B, T, D) of class tokens (B, T, D); the mask is bool (B, T)."""
        return frames


class TemporalTransformer(MeanPool):
    """A transformer over the frames' class tokens, added to them (CLIP4Clip's seqTransf).

    Attention heads have 64 channels; below a width of 64 there is one.

    Args:
        dim: Width D.
        depth: Transformer layers.
        max_frames: Most frames of a video: as many have a position.
        position_std: Standard deviation from which the positions are drawn; CLIP4Clip's 0.02
            suits a pretrained backbone.
    """

    def __init__(
        self, dim: int, *, depth: int = 4, max_frames: int = 128, position_std: float = 0.02
    ) -> None:
        super().__init__()
        self.positions = nn.Parameter(position_std * torch.randn(max_frames, dim))
        heads = max(1, dim // ATTENTION_HEAD_DIM)
        self.layers = nn.ModuleList(TransformerLayer(dim, heads) for _ in range(depth))

    def _fuse(self, frames: Tensor, mask: Tensor | None) -> Tensor:
        length = frames.shape[1]
        if length > len(self.positions):
            raise ValueError(
                f"videos must have at most max_frames = {len(self.positions)} frames, got {length}"
            )
        if mask is None:
            return frames + self._attend(frames, None)
        # `where`, never a product: a masked NaN must reach neither the others nor a gradient.
        real = torch.where(mask.unsqueeze(-1), frames, 0)
        # The softmax over no key is NaN: a video without a real frame attends to its zeros.
        fused = real + self._attend(real, mask | ~mask.any(1, keepdim=True))
        return torch.where(mask.unsqueeze(-1), fused, frames)

    def _attend(self, frames: Tensor, keep: Tensor | None) -> Tensor:
        x = frames + self.positions[: frames.shape[1]]
        for layer in self.layers:
            x = layer(x, keep)
        return x
