"""Recognising the family of a backbone: conversions of frames, and what is not supported."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from muse_adapter.backbones import find_patch_tokens
from tests.support.real_backbones import VISION, hf
from tests.support.tiny_clips import OpenAIClip, TimmVit


@pytest.mark.parametrize("build", [OpenAIClip, TimmVit], ids=["openai", "timm"])
def test_frames_are_converted_to_the_backbone(build: Callable[[], nn.Module]) -> None:
    backbone = build().bfloat16()
    tokens = find_patch_tokens(backbone).read(backbone, torch.randn(2, 3, 16, 16))
    assert tokens.dtype == torch.bfloat16


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_unknown_backbone_lists_the_families() -> None:
    with pytest.raises(TypeError) as caught:
        find_patch_tokens(nn.Sequential(nn.Conv2d(3, 8, 4)))
    for part in ("Sequential", "return_hidden", "output_tokens", "num_prefix_tokens", "cls_token"):
        assert part in str(caught.value)
    assert "VideoEncoder(backbone, head, tokens=my_function)" in str(caught.value)
    assert "pass backbone." not in str(caught.value)


def test_unknown_backbone_names_a_supported_child() -> None:
    with pytest.raises(TypeError, match=r"'inner' is supported \(timm ViT\): pass backbone\.inner"):
        find_patch_tokens(Wrapped(TimmVit()))


def test_hugging_face_classifier_names_its_backbone() -> None:
    build = hf("Dinov2ForImageClassification", "Dinov2Config", **VISION)
    with pytest.raises(TypeError, match=r"pass backbone\.dinov2"):
        find_patch_tokens(build())


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_rejected() -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(TypeError, match="jit=False"):
        find_patch_tokens(traced)


def test_not_a_module_is_rejected() -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got str"):
        find_patch_tokens("ViT-B/32")  # type: ignore[arg-type]
