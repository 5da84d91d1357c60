"""Pooling: of frame features into a video embedding, and of tokens with learned weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def mean_pool(frames: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Normalise the frames, average the real ones and normalise the mean.

    This is meanP of CLIP4Clip (MUSE, section 5). It is computed in float32 at least, since the
    squares of half-precision features overflow.

    Args:
        frames: (B, T, D).
        frame_mask: (B, T) bool; None: all frames are real.

    Returns:
        (B, D) of unit norm, in the dtype of `frames`; zero, with zero gradient, for a video without
        a real frame.
    """
    unit = unit_frames(frames, frame_mask)
    if frame_mask is None:
        return F.normalize(unit.mean(1), dim=-1).to(frames.dtype)
    mean = unit.sum(1) / frame_mask.sum(1, keepdim=True).clamp(min=1)
    return F.normalize(mean, dim=-1).to(frames.dtype)


def unit_frames(frames: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Normalise frames (B, T, D) in float32 at least; masked ones become zero."""
    wide = frames.float() if frames.dtype in (torch.float16, torch.bfloat16) else frames
    if frame_mask is None:
        return F.normalize(wide, dim=-1)
    mask = frame_mask.unsqueeze(-1)
    # `where` before and after the norm: a masked NaN must reach neither the sum nor a gradient.
    return torch.where(mask, F.normalize(torch.where(mask, wide, 0), dim=-1), 0)


def check_frames(frames: Tensor) -> None:
    """Refuse frame features of another shape than (B, T, D).

    Raises:
        ValueError: Another number of axes, or a size 0.
    """
    if frames.dim() != 3 or 0 in frames.shape:
        raise ValueError(
            f"frames must have shape (B, T, D) with no size 0, got {tuple(frames.shape)}"
        )


class AttentionPool(nn.Module):
    """Average tokens with learned weights (the modular pooling of XML and GMMFormer).

        y = sum over l of softmax over l of (w . x_l) * x_l

    Args:
        dim: Width D.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.score = nn.Linear(dim, 1, bias=False)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Pool tokens.

        Args:
            x: (..., L, D), finite.
            keep: Bool (..., L), True for the tokens to average, at least one in each row; None:
                all.

        Returns:
            (..., D).
        """
        scores = self.score(x)
        if keep is not None:
            scores = scores.masked_fill(~keep[..., None], torch.finfo(scores.dtype).min)
        return (scores.softmax(-2) * x).sum(-2)
