"""Patch tokens of CLIP as implemented by OpenAI, CLIP4Clip and open_clip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.backbones import find_patch_tokens
from tests.support.real_backbones import open_clip_model, open_clip_timm, openai_clip
from tests.support.small_encoders import ROUNDING
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip, shake
from tests.support.token_cases import TOLERANCE, TokenCase, encode_image, for_each


def openai_patches(clip: Any, frames: Tensor) -> Tensor:
    tokens = clip.visual.ln_post(clip.visual.embed(frames)[:, 1:])
    return tokens if clip.visual.proj is None else tokens @ clip.visual.proj


STAND_INS = {
    "openai": TokenCase(OpenAIClip, 12, 1, encode_image, openai_patches),
    "openai_visual": TokenCase(lambda: OpenAIClip().visual, 12, 1, lambda m, x: m(x)),
    "openai_not_projected": TokenCase(
        lambda: OpenAIClip(out=None), 16, 1, encode_image, openai_patches
    ),
    "clip4clip": TokenCase(Clip4ClipClip, 12, 1, encode_image, openai_patches),
    "clip4clip_visual": TokenCase(
        lambda: Clip4ClipClip().visual, 12, 1, lambda m, x: m.ln_post(m(x)[:, 0]) @ m.proj
    ),
}


@for_each(STAND_INS)
def test_stand_in(case: TokenCase) -> None:
    case.check()


def test_as_many_frames_as_tokens() -> None:
    """17 frames of 17 tokens: the axes cannot be distinguished by size."""
    clip = OpenAIClip().double().eval()
    frames = torch.randn(17, 3, 16, 16, dtype=torch.float64)
    tokens = find_patch_tokens(clip).read(clip, frames)
    torch.testing.assert_close(tokens[:, 0], clip.encode_image(frames), **TOLERANCE)


def test_hook_is_removed() -> None:
    clip = OpenAIClip()
    broken = clip.visual.transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        find_patch_tokens(clip).read(clip, torch.randn(2, 3, 16, 16))
    broken.remove()
    find_patch_tokens(clip).read(clip, torch.randn(2, 3, 16, 16))
    assert not clip.visual.transformer._forward_hooks


def test_openai_clip() -> None:
    """OpenAI's own code, in float32: its norms compute in no other dtype."""
    clip = shake(openai_clip(), 0.1).eval()
    frames = torch.randn(3, 3, 16, 16)
    found = find_patch_tokens(clip)
    assert (found.family, found.width, found.num_prefix_tokens) == ("OpenAI CLIP", 12, 1)
    tokens = found.read(clip, frames)
    assert tokens.shape == (3, 17, 12)
    expected = clip.encode_image(frames)
    torch.testing.assert_close(tokens[:, 0], expected, **ROUNDING[torch.float32])


@pytest.mark.parametrize("build", [Clip4ClipClip, OpenAIClip], ids=["clip4clip", "openai"])
def test_3d_patches_are_rejected(build: Callable[[], Any]) -> None:
    clip = build()
    clip.visual.linear_patch = "3d"
    with pytest.raises(ValueError, match="linear_patch='2d'"):
        find_patch_tokens(clip)


def open_clip_patches(clip: Any, frames: Tensor) -> Tensor:
    result = clip.visual.forward_intermediates(
        frames, indices=1, normalize_intermediates=True, output_fmt="NLC"
    )
    return result["image_intermediates"][-1] @ clip.visual.proj


OPEN_CLIP = {
    "class_token": TokenCase(open_clip_model(), 12, 1, encode_image, open_clip_patches),
    "wide": TokenCase(
        open_clip_model(image_size=(8, 24)), 12, 1, encode_image, size=(8, 24), grid=(2, 6)
    ),
    "output_tokens": TokenCase(
        open_clip_model(output_tokens=True), 12, 1, lambda m, x: m.visual(x)[0]
    ),
    "mean": TokenCase(open_clip_model(pool_type="avg"), 12, 1, encode_image, open_clip_patches),
    "mean_norm_after": TokenCase(
        open_clip_model(pool_type="avg", final_ln_after_pool=True),
        12,
        1,
        encode_image,
        open_clip_patches,
    ),
    "mean_output_tokens": TokenCase(
        open_clip_model(pool_type="avg", output_tokens=True), 12, 1, lambda m, x: m.visual(x)[0]
    ),
}


@for_each(OPEN_CLIP)
def test_open_clip(case: TokenCase) -> None:
    case.check()


OPEN_CLIP_TIMM = {
    "siglip": open_clip_timm("test_vit", timm_pool="map", timm_proj="none"),
    "class_token_linear": open_clip_timm("test_vit", timm_pool="token", timm_proj="linear"),
    "mean_mlp": open_clip_timm("test_vit", timm_pool="avg", timm_proj="mlp"),
    "own_projection": open_clip_timm("test_vit", timm_pool="token", timm_proj=""),
}


@pytest.mark.parametrize("build", OPEN_CLIP_TIMM.values(), ids=OPEN_CLIP_TIMM.keys())
def test_open_clip_on_timm(build: Callable[[], nn.Module]) -> None:
    model = build()
    width = model.encode_image(torch.randn(1, 3, 64, 64)).shape[1]
    TokenCase(lambda: model, width, 1, encode_image, size=(64, 64), grid=(4, 4)).check()


def test_open_clip_projects_every_token() -> None:
    """The projection of the class token is applied to every patch."""
    model: Any = OPEN_CLIP_TIMM["class_token_linear"]().double().eval()
    frames = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    tokens = find_patch_tokens(model).read(model, frames)
    expected = model.visual.head(model.visual.trunk.forward_features(frames))
    torch.testing.assert_close(tokens, expected, **TOLERANCE)


def test_coca_is_rejected() -> None:
    with pytest.raises(ValueError, match="attentional pool"):
        find_patch_tokens(open_clip_model(attentional_pool=True, attn_pooler_heads=2)())
