"""Patch tokens of the vision models in Hugging Face transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter.backbones import find_patch_tokens
from tests.support.real_backbones import CLIP, NAFLEX_VISION, TEXT, VISION, hf
from tests.support.token_cases import TokenCase, for_each


def pooled(model: Any, frames: Tensor) -> Tensor:
    return model(pixel_values=frames).pooler_output


def image_features(model: Any, frames: Tensor) -> Tensor:
    result = model.get_image_features(pixel_values=frames)
    return result if isinstance(result, Tensor) else result.pooler_output


def first_token(model: Any, frames: Tensor) -> Tensor:
    return model(pixel_values=frames).last_hidden_state[:, 0]


def hidden_patches(prefix: int) -> Callable[[Any, Tensor], Tensor]:
    def patches(model: Any, frames: Tensor) -> Tensor:
        vision = getattr(model, "vision_model", model)
        return vision(pixel_values=frames).last_hidden_state[:, prefix:]

    return patches


def naflex(patch: int) -> Callable[[Any, Tensor], Tensor]:
    """Embed frames with SigLIP 2 NaFlex and its own processor."""

    def embedding(model: Any, frames: Tensor) -> Tensor:
        name = "transformers.models.siglip2.image_processing_pil_siglip2"
        cut = pytest.importorskip(name, reason="this transformers has no such processor")
        height, width = frames.shape[-2] // patch, frames.shape[-1] // patch
        patches = [cut.convert_image_to_patches(frame.numpy(), patch) for frame in frames]
        return model.vision_model(
            torch.stack([torch.from_numpy(p) for p in patches]),
            torch.ones(len(frames), height * width, dtype=torch.long),
            torch.tensor([[height, width]] * len(frames)),
        ).pooler_output

    return embedding


HUGGING_FACE = {
    "CLIPModel": TokenCase(hf("CLIPModel", "CLIPConfig", **CLIP), 12, 1, image_features),
    "CLIPVisionModelWithProjection": TokenCase(
        hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", **VISION, projection_dim=12),
        12,
        1,
        lambda m, x: m(pixel_values=x).image_embeds,
    ),
    "CLIPVisionModel": TokenCase(
        hf("CLIPVisionModel", "CLIPVisionConfig", **VISION), 16, 1, pooled
    ),
    "SiglipModel": TokenCase(
        hf("SiglipModel", "SiglipConfig", text_config=TEXT, vision_config=VISION),
        16,
        1,
        image_features,
        hidden_patches(0),
    ),
    "SiglipVisionModel": TokenCase(
        hf("SiglipVisionModel", "SiglipVisionConfig", **VISION), 16, 1, pooled, hidden_patches(0)
    ),
    "SiglipVisionModel_without_pool": TokenCase(
        hf("SiglipVisionModel", "SiglipVisionConfig", **VISION, vision_use_head=False),
        16,
        0,
        None,
        hidden_patches(0),
    ),
    "Siglip2Model": TokenCase(
        hf("Siglip2Model", "Siglip2Config", text_config=TEXT, vision_config=NAFLEX_VISION),
        16,
        1,
        naflex(4),
    ),
    "Siglip2Model_wide": TokenCase(
        hf("Siglip2Model", "Siglip2Config", text_config=TEXT, vision_config=NAFLEX_VISION),
        16,
        1,
        naflex(4),
        size=(8, 24),
        grid=(2, 6),
    ),
    "Dinov2Model": TokenCase(
        hf("Dinov2Model", "Dinov2Config", **VISION), 16, 1, pooled, hidden_patches(1)
    ),
    "Dinov2Model_wide": TokenCase(
        hf("Dinov2Model", "Dinov2Config", **VISION), 16, 1, pooled, size=(8, 24), grid=(2, 6)
    ),
    "Dinov2WithRegistersModel": TokenCase(
        hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **VISION),
        16,
        5,
        pooled,
        hidden_patches(5),
    ),
    "DINOv3ViTModel": TokenCase(
        hf("DINOv3ViTModel", "DINOv3ViTConfig", **VISION, num_register_tokens=4), 16, 5, pooled
    ),
    "ViTModel": TokenCase(
        hf("ViTModel", "ViTConfig", **VISION), 16, 1, first_token, hidden_patches(1)
    ),
    "DeiTModel": TokenCase(hf("DeiTModel", "DeiTConfig", **VISION), 16, 2, first_token),
}


@for_each(HUGGING_FACE)
def test_hugging_face(case: TokenCase) -> None:
    case.check()


def test_microsofts_x_clip_is_rejected() -> None:
    values = VISION | {
        "mit_hidden_size": 16,
        "mit_intermediate_size": 16,
        "mit_num_attention_heads": 2,
    }
    build = hf("XCLIPVisionModel", "XCLIPVisionConfig", **values, num_frames=2)
    with pytest.raises(ValueError, match="Microsoft's X-CLIP"):
        find_patch_tokens(build())


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("TimesformerModel", "TimesformerConfig"),
        ("VivitModel", "VivitConfig"),
        ("VideoMAEModel", "VideoMAEConfig"),
        ("VJEPA2Model", "VJEPA2Config"),
    ],
)
def test_video_transformers_are_rejected(name: str, config: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is a video transformer .*one by one"):
        find_patch_tokens(hf(name, config, **VISION)())


@pytest.mark.parametrize(
    ("name", "config"),
    [("BeitModel", "BeitConfig"), ("BlipVisionModel", "BlipVisionConfig")],
    ids=["norm after the pool", "norm inside"],
)
def test_similar_models_are_not_matched(name: str, config: str) -> None:
    with pytest.raises(TypeError, match="no patch tokens found"):
        find_patch_tokens(hf(name, config, **VISION)())


def test_dropped_patches_are_rejected() -> None:
    backbone = hf("ViTMAEModel", "ViTMAEConfig", **VISION)()
    found = find_patch_tokens(backbone)
    with pytest.raises(ValueError, match=r"4x4 grid .* = \(2, 17, 16\), .* returned \(2, 5, 16\)"):
        found.read(backbone, torch.randn(2, 3, 16, 16))
