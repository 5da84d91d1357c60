"""Frames of another size than the backbone's: both sizes are named, for every family."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from muse_adapter.backbones import find_patch_tokens
from tests.support.real_backbones import FAMILIES
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip

# These resize their positions to the frames (open_clip builds timm's models so).
ANY_SIZE = ("HF SigLIP 2", "HF DINOv2", "open_clip timm")
CASES = {
    "OpenAI stand-in": (OpenAIClip, 16),
    "CLIP4Clip stand-in": (Clip4ClipClip, 16),
    **{name: case for name, case in FAMILIES.items() if name not in ANY_SIZE},
}


@pytest.mark.parametrize(("build", "side"), CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("factors", [(2, 2), (4, 0.25)], ids=["larger", "as many patches"])
def test_another_size_is_refused(
    build: Callable[[], nn.Module], side: int, factors: tuple[float, float]
) -> None:
    backbone = build().eval()
    found = find_patch_tokens(backbone)
    height, width = (int(side * factor) for factor in factors)
    own, grid = found.grid_of(backbone, (side, side)), found.grid_of(backbone, (height, width))
    with pytest.raises(ValueError) as caught:
        found.read(backbone, torch.randn(1, 3, height, width))
    message = str(caught.value)
    assert f"frames are {height}x{width} pixels, a grid of {grid[0]}x{grid[1]} patches" in message
    assert f"takes {side}x{side} pixels, {own[0]}x{own[1]} patches" in message


@pytest.mark.parametrize("name", ANY_SIZE)
def test_models_of_any_size(name: str) -> None:
    build, side = FAMILIES[name]
    backbone = build().eval()
    found = find_patch_tokens(backbone)
    tokens = found.read(backbone, torch.randn(1, 3, 2 * side, side))
    rows, columns = found.grid_of(backbone, (2 * side, side))
    assert rows == 2 * columns
    assert tokens.shape[1] == found.num_prefix_tokens + rows * columns
