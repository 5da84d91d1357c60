"""Small folders of cached tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter import CachedTokens, VideoEncoder, cache_tokens
from tests.support.small_encoders import double_encoder
from tests.support.tiny_clips import OpenAIClip

COUNT, T, PER_SHARD = 5, 3, 2
MASKS = torch.tensor([[1, 1, 1], [1, 1, 0], [0, 1, 0], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)
FILES = {
    "tokens.json",
    "probe.safetensors",
    "tokens-00000.safetensors",
    "tokens-00001.safetensors",
    "tokens-00002.safetensors",
}


def frozen_encoder(backbone: nn.Module | None = None, **options: Any) -> VideoEncoder:
    """Build a frozen encoder in double precision, the same at every call."""
    torch.manual_seed(0)
    return double_encoder(OpenAIClip() if backbone is None else backbone, freeze=True, **options)


def other_weights(factor: float = 1.01) -> VideoEncoder:
    """Build the encoder with another projection."""
    encoder = frozen_encoder()
    with torch.no_grad():
        encoder.backbone.visual.proj.mul_(factor)
    return encoder


def make_frames(dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw the frames (COUNT, T, 3, 16, 16), the same at every call."""
    generator = torch.Generator().manual_seed(7)
    return torch.randn(COUNT, T, 3, 16, 16, generator=generator, dtype=dtype)


class Videos:
    """A data set of videos with masks; records which are read, and is interrupted at one."""

    def __init__(self, frames: Tensor | None = None, stop_at: int = COUNT) -> None:
        self.frames = make_frames() if frames is None else frames
        self.stop_at = stop_at
        self.read: list[int] = []

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if index >= self.stop_at:
            raise KeyboardInterrupt
        self.read.append(index)
        return self.frames[index], MASKS[index]


def file_names(folder: Path) -> set[str]:
    """Return the names of the files in a folder."""
    return {path.name for path in folder.iterdir()}


def cache(folder: Path, encoder: VideoEncoder | None = None, **options: Any) -> CachedTokens:
    """Cache the tokens of all videos."""
    encoder = frozen_encoder() if encoder is None else encoder
    return cache_tokens(encoder, Videos(), folder, **{"videos_per_shard": PER_SHARD, **options})
