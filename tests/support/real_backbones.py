"""Small models of the real libraries with random weights; a missing library skips the test."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from torch import nn

from tests.support.backbone_libraries import import_openai_clip


def load(name: str) -> ModuleType:
    """Import a library, or skip the test."""
    return pytest.importorskip(name, reason=f"needs {name}")


VISION = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 8,
}
CLIP = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 12}
NAFLEX_VISION = {k: v for k, v in VISION.items() if k != "image_size"} | {"num_patches": 16}
SIGLIP = {"text_config": TEXT | {"projection_size": 16}, "vision_config": VISION}
SIGLIP_2 = {"text_config": TEXT | {"projection_size": 16}, "vision_config": NAFLEX_VISION}


def hf(name: str, config: str, **values: Any) -> Callable[[], nn.Module]:
    """Return a function that builds a model of transformers."""

    def build() -> nn.Module:
        transformers = pytest.importorskip("transformers", reason="needs transformers")
        transformers.logging.set_verbosity_error()
        return getattr(transformers, name)(getattr(transformers, config)(**values))

    return build


def timm_model(name: str, **values: Any) -> Callable[[], nn.Module]:
    """Return a function that builds a small model of timm."""
    values = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2} | values
    return lambda: load("timm").create_model(name, pretrained=False, **values)


def open_clip_model(
    kind: str = "CLIP",
    bias: float | None = None,
    text: dict[str, Any] | None = None,
    **vision: Any,
) -> Callable[[], nn.Module]:
    """Return a function that builds an open_clip model.

    Args:
        kind: Name of the class.
        bias: Initial logit bias, or None.
        text: Settings of the text tower.
        **vision: Settings of the image tower.
    """

    def build() -> nn.Module:
        text_cfg = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
        vision_cfg = {"image_size": 16, "patch_size": 4, "width": 16, "layers": 2, "head_width": 8}
        text_cfg |= text or {}
        clip = getattr(load("open_clip"), kind)
        return clip(
            12,
            vision_cfg=vision_cfg | vision,
            text_cfg=text_cfg,
            init_logit_bias=bias,
        )

    return build


def open_clip_timm(name: str, **vision: Any) -> Callable[[], nn.Module]:
    """Return a function that builds an open_clip model with a timm ViT as tower."""
    return open_clip_model(timm_model_name=name, image_size=64, **vision)


def openai_clip(**values: Any) -> nn.Module:
    """Build OpenAI's own CLIP; its norms compute in float32 only."""
    clip = import_openai_clip()
    if clip is None:
        pytest.skip("needs OpenAI's clip (clip-anytorch)")
    values = {
        "embed_dim": 12,
        "image_resolution": 16,
        "vision_layers": 2,
        "vision_width": 64,
        "vision_patch_size": 4,
        "context_length": 8,
        "vocab_size": 50,
        "transformer_width": 16,
        "transformer_heads": 2,
        "transformer_layers": 1,
    } | values
    return clip.model.CLIP(**values)


# One model per family, with the side length of its frames.
FAMILIES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "HF CLIP": (hf("CLIPModel", "CLIPConfig", **CLIP), 16),
    "HF SigLIP": (hf("SiglipVisionModel", "SiglipVisionConfig", **VISION), 16),
    "HF SigLIP 2": (
        hf("Siglip2VisionModel", "Siglip2VisionConfig", **NAFLEX_VISION),
        16,
    ),
    "HF DINOv2": (hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **VISION), 16),
    "HF ViT": (hf("ViTModel", "ViTConfig", **VISION), 16),
    "timm CLIP": (timm_model("vit_base_patch32_clip_224"), 32),
    "timm SigLIP": (timm_model("vit_base_patch16_siglip_224"), 32),
    "timm DINOv2": (timm_model("vit_small_patch14_reg4_dinov2"), 32),
    "timm EVA": (timm_model("eva02_tiny_patch14_224"), 32),
    "open_clip": (open_clip_model(), 16),
    "open_clip timm": (
        open_clip_timm("test_vit", timm_pool="map", timm_proj="none"),
        64,
    ),
    "OpenAI CLIP": (openai_clip, 16),
}
