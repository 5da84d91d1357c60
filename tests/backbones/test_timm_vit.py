"""Patch tokens of timm's vision transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor, nn

from tests.support.real_backbones import timm_model
from tests.support.tiny_clips import TimmVit
from tests.support.token_cases import TokenCase, for_each


def pre_logits(model: Any, frames: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(frames), pre_logits=True)


def timm_patches(model: Any, frames: Tensor) -> Tensor:
    return model.fc_norm(model.forward_features(frames))[:, model.num_prefix_tokens :]


STAND_INS = {
    "class_token": TokenCase(TimmVit, 16, 1, pre_logits, timm_patches),
    "registers": TokenCase(lambda: TimmVit(registers=4), 16, 5, pre_logits, timm_patches),
    "mean": TokenCase(lambda: TimmVit(pool="avg"), 16, 1, pre_logits, timm_patches),
    "mean_norm_after": TokenCase(
        lambda: TimmVit(pool="avg", fc_norm=True), 16, 1, pre_logits, timm_patches
    ),
    "no_class_token": TokenCase(
        lambda: TimmVit(pool="avg", cls=False), 16, 1, pre_logits, timm_patches
    ),
    "registers_alone": TokenCase(
        lambda: TimmVit(pool="avg", cls=False, registers=2), 16, 1, pre_logits, timm_patches
    ),
    "without_pool": TokenCase(
        lambda: TimmVit(pool="", cls=False, registers=2), 16, 0, None, timm_patches
    ),
    "wide_frames": TokenCase(TimmVit, 16, 1, pre_logits, timm_patches, size=(8, 20), grid=(2, 5)),
}


@for_each(STAND_INS)
def test_stand_in(case: TokenCase) -> None:
    case.check()


REAL_TIMM = {
    "vit": (timm_model("vit_tiny_patch16_224"), 1),
    "vit_wide": (timm_model("vit_tiny_patch16_224", img_size=(16, 48)), 1),
    "vit_mean": (timm_model("vit_tiny_patch16_224", global_pool="avg"), 1),
    "dinov2_registers": (timm_model("vit_small_patch14_reg4_dinov2"), 5),
    "siglip": (timm_model("vit_base_patch16_siglip_224"), 1),
    "eva02": (timm_model("eva02_tiny_patch14_224"), 1),
    "clip": (timm_model("vit_base_patch32_clip_224"), 1),
    "no_class_token": (timm_model("vit_tiny_patch16_224", class_token=False, global_pool="avg"), 1),
    "registers_alone": (timm_model("vit_medium_patch16_reg4_gap_256"), 1),
    "no_token_nor_pool": (timm_model("vit_tiny_patch16_224", class_token=False, global_pool=""), 0),
    "distilled": (timm_model("deit_tiny_distilled_patch16_224"), 1),
}


@pytest.mark.parametrize(("build", "prefix"), REAL_TIMM.values(), ids=REAL_TIMM.keys())
def test_real_timm(build: Callable[[], nn.Module], prefix: int) -> None:
    backbone = build()
    grid = backbone.patch_embed.grid_size
    size = (grid[0] * 8, grid[1] * 8)
    embedding = pre_logits if prefix else None
    TokenCase(lambda: backbone, 32, prefix, embedding, timm_patches, size, tuple(grid)).check()
