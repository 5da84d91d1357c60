"""Small video encoders, and the inputs and tolerances that their tests share."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter import MultiScaleMamba, VideoEncoder
from tests.support.tiny_clips import OpenAIClip

# For `torch.testing.assert_close`: the same formulas on other batches, memory layouts or orders of
# operations, so other roundings of matrix products a few layers deep.
ROUNDING: dict[torch.dtype, dict[str, float]] = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-12},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    # bfloat16 keeps 8 bits: 1/256 of embeddings of norm 1, some layers deep.
    torch.bfloat16: {"rtol": 0.0, "atol": 0.05},
}
B, T = 2, 3
MASK = torch.tensor([[True, True, False], [True, False, True]])


def small_head(dim: int = 12, **fields: Any) -> MultiScaleMamba:
    """Build a cheap head in which, unlike in a new one, patches already affect the features."""
    cheap = {"depth": 1, "dropout": 0.0, "d_state": 4, "scales": (0.5, 1.0), "init": "release"}
    return MultiScaleMamba(dim=dim, **{**cheap, **fields})


def double_encoder(backbone: nn.Module | None = None, **options: Any) -> VideoEncoder:
    """Build an encoder in double precision; by default of an `OpenAIClip`."""
    backbone = OpenAIClip() if backbone is None else backbone
    return VideoEncoder(backbone, small_head(), **options).double()


def random_frames(dtype: torch.dtype = torch.float64, size: tuple[int, int] = (16, 16)) -> Tensor:
    """Draw frames (B, T, 3, height, width)."""
    return torch.randn(B, T, 3, *size, dtype=dtype)


class CustomBackbone(nn.Module):
    """A backbone of no known family: patches of 4x4 pixels, no class token."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 12, 4, 4)

    def tokens(self, frames: Tensor) -> Tensor:
        """Return tokens (n, H*W, 12) of frames (n, 3, height, width)."""
        return self.conv(frames).flatten(2).transpose(1, 2)
