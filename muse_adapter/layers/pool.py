"""From frame features to a video embedding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def mean_pool(frames: Tensor, frame_mask: Tensor | None) -> Tensor:
    """Normalise the frames, average the real ones, normalise again.

    MUSE, section 5; CLIP4Clip's meanP. Computed in float32 at least: the squares of half-precision
    features overflow.

    Args:
        frames: (B, T, D).
        frame_mask: (B, T) bool, or None: all frames are real.

    Returns:
        (B, D) of unit norm, in the type of `frames`; zero, with gradient zero, for a video without
        a real frame.
    """
    wide = frames.float() if frames.dtype in (torch.float16, torch.bfloat16) else frames
    if frame_mask is None:
        return F.normalize(F.normalize(wide, dim=-1).mean(1), dim=-1).to(frames.dtype)
    keep = frame_mask.unsqueeze(-1)
    # `where` on both sides of the norm: a masked NaN must reach neither the sum nor a gradient.
    unit = F.normalize(torch.where(keep, wide, 0), dim=-1)
    mean = torch.where(keep, unit, 0).sum(1) / frame_mask.sum(1, keepdim=True).clamp(min=1)
    return F.normalize(mean, dim=-1).to(frames.dtype)
