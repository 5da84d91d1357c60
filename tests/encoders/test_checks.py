"""Invalid arguments and inputs of VideoEncoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter.encoders.video import VideoEncoder
from tests.support.small_encoders import B, CustomBackbone, T, random_frames, small_head
from tests.support.tiny_clips import OpenAIClip, TimmVit

CONSTRUCTION = {
    "unknown backbone": (
        lambda: VideoEncoder(CustomBackbone()),
        TypeError,
        "no patch tokens found in Custom",
    ),
    "backbone is a name": (
        lambda: VideoEncoder("ViT-B/32"),  # type: ignore[arg-type]
        TypeError,
        r"backbone must be an nn\.Module, got str",
    ),
    "backbone is a function": (
        lambda: VideoEncoder(len, small_head(), tokens=len),  # type: ignore[arg-type]
        TypeError,
        r"backbone must be an nn\.Module, got builtin",
    ),
    "head is a number": (
        lambda: VideoEncoder(OpenAIClip(), 512),  # type: ignore[arg-type]
        TypeError,
        r"head must be an nn\.Module or None, got int",
    ),
    "tokens without head": (
        lambda: VideoEncoder(CustomBackbone(), tokens=CustomBackbone().tokens),
        ValueError,
        r"head must be given(.|\n)*MultiScaleMamba\(dim=C, num_prefix_tokens=1\)",
    ),
    "tokens is no function": (
        lambda: VideoEncoder(CustomBackbone(), small_head(), tokens=torch.zeros(1)),  # type: ignore
        TypeError,
        "tokens must be a function of frames, got Tensor",
    ),
    "head of another width": (
        lambda: VideoEncoder(OpenAIClip(), small_head(16)),
        ValueError,
        r"width 16, .* OpenAI CLIP have width 12: MultiScaleMamba\(dim=16, in_dim=12\)",
    ),
    "head of other prefix": (
        lambda: VideoEncoder(TimmVit(registers=4), small_head(16)),
        ValueError,
        "num_prefix_tokens=1, but this timm ViT has 5",
    ),
    "empty slices": (
        lambda: VideoEncoder(OpenAIClip(), frames_per_slice=0),
        ValueError,
        "frames_per_slice must be at least 1, got 0",
    ),
    "fractional slices": (
        lambda: VideoEncoder(OpenAIClip(), frames_per_slice=2.5),  # type: ignore[arg-type]
        TypeError,
        r"frames_per_slice must be an int or None, got 2\.5",
    ),
}


@pytest.mark.parametrize(
    ("build", "error", "message"), CONSTRUCTION.values(), ids=CONSTRUCTION.keys()
)
def test_wrong_construction(
    build: Callable[[], VideoEncoder], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build()


INPUTS = {
    "one video alone": (
        (torch.zeros(T, 3, 16, 16), None),
        ValueError,
        r"\(B, T, 3, height, width\), got \(3, 3, 16, 16\)",
    ),
    "channels last": (
        (torch.zeros(B, T, 16, 16, 3), None),
        ValueError,
        r"3 channels, .* got \(2, 3, 16, 16, 3\); channels must come before",
    ),
    "grey": (
        (torch.zeros(B, T, 1, 16, 16), None),
        ValueError,
        r"3 channels, .* \(2, 3, 1, 16, 16\)$",
    ),
    "integers": (
        (torch.zeros(B, T, 3, 16, 16, dtype=torch.uint8), None),
        TypeError,
        r"floating point, got torch\.uint8: scale and normalise",
    ),
    "no video": ((torch.zeros(0, T, 3, 16, 16), None), ValueError, r"got \(B, T\) = \(0, 3\)"),
    "no frame": ((torch.zeros(B, 0, 3, 16, 16), None), ValueError, r"got \(B, T\) = \(2, 0\)"),
    "a list": (([0.0], None), TypeError, "frames must be a tensor, got list"),
    "mask of another length": (
        (torch.zeros(B, T, 3, 16, 16), torch.ones(B, 2)),
        ValueError,
        r"frame_mask must have shape \(B, T\) = \(2, 3\), got \(2, 2\)",
    ),
    "mask is a list": (
        (torch.zeros(B, T, 3, 16, 16), [[1, 1, 1], [1, 1, 0]]),
        TypeError,
        "frame_mask must be a tensor, got list",
    ),
    "mask of other values": (
        (torch.zeros(B, T, 3, 16, 16), torch.full((B, T), 2)),
        ValueError,
        "frame_mask",
    ),
}


@pytest.mark.parametrize(("inputs", "error", "message"), INPUTS.values(), ids=INPUTS.keys())
def test_wrong_input(inputs: tuple[Any, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        VideoEncoder(OpenAIClip(), small_head())(*inputs)


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x: None, TypeError, "got NoneType"),
        (lambda x: torch.zeros(len(x), 16, 12, dtype=torch.int32), TypeError, r"got torch\.int32"),
        (lambda x: torch.zeros(len(x), 12), ValueError, r"n = 6 frames, got shape \(6, 12\)"),
        (lambda x: torch.zeros(1, 16, 12), ValueError, r"n = 6 frames, got shape \(1, 16, 12\)"),
    ],
    ids=["nothing", "integers", "pooled", "other frames"],
)
def test_wrong_custom_tokens(
    function: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    encoder = VideoEncoder(CustomBackbone(), small_head(num_prefix_tokens=0), tokens=function)
    with pytest.raises(error, match=message):
        encoder(random_frames(torch.float32))
