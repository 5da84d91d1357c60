"""Patch tokens of each family: their class token is the backbone's own image embedding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.backbones import find_patch_tokens
from tests.support.real_backbones import (
    CLIP,
    NAFLEX_VISION,
    TEXT,
    VISION,
    hf,
    open_clip_model,
    open_clip_timm,
    openai_clip,
    timm_model,
)
from tests.support.tiny_clips import Clip4ClipClip, OpenAIClip, TimmVit, shake

# float64 on both sides and the same operations, in another order where a norm moves past a pool.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


@dataclass
class Case:
    """A backbone, what its tokens should be, and how it embeds an image itself (or None)."""

    build: Callable[[], nn.Module]
    width: int
    prefix: int
    embedding: Callable[[Any, Tensor], Tensor] | None
    patches: Callable[[Any, Tensor], Tensor] | None = None
    size: tuple[int, int] = (16, 16)
    grid: tuple[int, int] = (4, 4)

    def check(self) -> None:
        torch.manual_seed(0)
        backbone = shake(self.build()).double().eval()
        frames = torch.randn(3, 3, *self.size, dtype=torch.float64)
        found = find_patch_tokens(backbone)
        assert (found.width, found.num_prefix_tokens) == (self.width, self.prefix)
        assert found.grid_of(backbone, self.size) == self.grid
        with torch.no_grad():
            tokens = found.read(backbone, frames)
            assert tokens.shape == (3, self.prefix + self.grid[0] * self.grid[1], self.width)
            assert tokens.std() > 1e-3 and (tokens[0] - tokens[1]).abs().max() > 1e-3
            if self.embedding is not None:
                expected = self.embedding(backbone, frames)
                torch.testing.assert_close(tokens[:, 0], expected, **TOLERANCE)
            if self.patches is not None:
                expected = self.patches(backbone, frames)
                torch.testing.assert_close(tokens[:, self.prefix :], expected, **TOLERANCE)


def run(cases: dict[str, Case]) -> Any:
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def openai_patches(clip: Any, frames: Tensor) -> Tensor:
    tokens = clip.visual.ln_post(clip.visual.embed(frames)[:, 1:])
    return tokens if clip.visual.proj is None else tokens @ clip.visual.proj


def encode_image(clip: Any, frames: Tensor) -> Tensor:
    return clip.encode_image(frames)


def pre_logits(model: Any, frames: Tensor) -> Tensor:
    return model.forward_head(model.forward_features(frames), pre_logits=True)


def timm_patches(model: Any, frames: Tensor) -> Tensor:
    return model.fc_norm(model.forward_features(frames))[:, model.num_prefix_tokens :]


STAND_INS = {
    "openai": Case(OpenAIClip, 12, 1, encode_image, openai_patches),
    "openai_visual": Case(lambda: OpenAIClip().visual, 12, 1, lambda m, x: m(x)),
    "openai_not_projected": Case(lambda: OpenAIClip(out=None), 16, 1, encode_image, openai_patches),
    "clip4clip": Case(Clip4ClipClip, 12, 1, encode_image, openai_patches),
    "clip4clip_visual": Case(
        lambda: Clip4ClipClip().visual, 12, 1, lambda m, x: m.ln_post(m(x)[:, 0]) @ m.proj
    ),
    "timm": Case(TimmVit, 16, 1, pre_logits, timm_patches),
    "timm_registers": Case(lambda: TimmVit(registers=4), 16, 5, pre_logits, timm_patches),
    "timm_mean": Case(lambda: TimmVit(pool="avg"), 16, 1, pre_logits, timm_patches),
    "timm_mean_norm_after": Case(
        lambda: TimmVit(pool="avg", fc_norm=True), 16, 1, pre_logits, timm_patches
    ),
    "timm_no_class_token": Case(
        lambda: TimmVit(pool="avg", cls=False), 16, 1, pre_logits, timm_patches
    ),
    "timm_registers_alone": Case(
        lambda: TimmVit(pool="avg", cls=False, registers=2), 16, 1, pre_logits, timm_patches
    ),
    "timm_without_pool": Case(
        lambda: TimmVit(pool="", cls=False, registers=2), 16, 0, None, timm_patches
    ),
    "timm_wide_frames": Case(TimmVit, 16, 1, pre_logits, timm_patches, size=(8, 20), grid=(2, 5)),
}


@run(STAND_INS)
def test_stand_in(case: Case) -> None:
    case.check()


def test_as_many_frames_as_tokens() -> None:
    """17 frames of 17 tokens: the two axes must not be told apart by their sizes."""
    clip = OpenAIClip().double().eval()
    frames = torch.randn(17, 3, 16, 16, dtype=torch.float64)
    tokens = find_patch_tokens(clip).read(clip, frames)
    torch.testing.assert_close(tokens[:, 0], clip.encode_image(frames), **TOLERANCE)


@pytest.mark.parametrize("build", [OpenAIClip, TimmVit], ids=["openai", "timm"])
def test_frames_are_converted_to_the_backbone(build: Callable[[], nn.Module]) -> None:
    backbone = build().bfloat16()
    tokens = find_patch_tokens(backbone).read(backbone, torch.randn(2, 3, 16, 16))
    assert tokens.dtype == torch.bfloat16


def test_hook_is_removed() -> None:
    clip = OpenAIClip()
    with pytest.raises(RuntimeError, match="size"):
        find_patch_tokens(clip).read(clip, torch.randn(2, 3, 20, 20))
    find_patch_tokens(clip).read(clip, torch.randn(2, 3, 16, 16))
    assert not clip.visual.transformer._forward_hooks


def test_openai_clip() -> None:
    """OpenAI's own code; in float32, since its norms compute in no other type."""
    clip = shake(openai_clip(), 0.1).eval()
    frames = torch.randn(3, 3, 16, 16)
    found = find_patch_tokens(clip)
    assert (found.family, found.width, found.num_prefix_tokens) == ("OpenAI CLIP", 12, 1)
    tokens = found.read(clip, frames)
    assert tokens.shape == (3, 17, 12)
    torch.testing.assert_close(tokens[:, 0], clip.encode_image(frames), rtol=0, atol=0)


# --- Hugging Face -------------------------------------------------------------------------------


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
    """SigLIP 2 NaFlex, fed what its own processor makes of the frames."""

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
    "CLIPModel": Case(hf("CLIPModel", "CLIPConfig", **CLIP), 12, 1, image_features),
    "CLIPVisionModelWithProjection": Case(
        hf("CLIPVisionModelWithProjection", "CLIPVisionConfig", **VISION, projection_dim=12),
        12,
        1,
        lambda m, x: m(pixel_values=x).image_embeds,
    ),
    "CLIPVisionModel": Case(hf("CLIPVisionModel", "CLIPVisionConfig", **VISION), 16, 1, pooled),
    "SiglipModel": Case(
        hf("SiglipModel", "SiglipConfig", text_config=TEXT, vision_config=VISION),
        16,
        1,
        image_features,
        hidden_patches(0),
    ),
    "SiglipVisionModel": Case(
        hf("SiglipVisionModel", "SiglipVisionConfig", **VISION), 16, 1, pooled, hidden_patches(0)
    ),
    "SiglipVisionModel_without_pool": Case(
        hf("SiglipVisionModel", "SiglipVisionConfig", **VISION, vision_use_head=False),
        16,
        0,
        None,
        hidden_patches(0),
    ),
    "Siglip2Model": Case(
        hf("Siglip2Model", "Siglip2Config", text_config=TEXT, vision_config=NAFLEX_VISION),
        16,
        1,
        naflex(4),
    ),
    "Siglip2Model_wide": Case(
        hf("Siglip2Model", "Siglip2Config", text_config=TEXT, vision_config=NAFLEX_VISION),
        16,
        1,
        naflex(4),
        size=(8, 24),
        grid=(2, 6),
    ),
    "Dinov2Model": Case(
        hf("Dinov2Model", "Dinov2Config", **VISION), 16, 1, pooled, hidden_patches(1)
    ),
    "Dinov2Model_wide": Case(
        hf("Dinov2Model", "Dinov2Config", **VISION), 16, 1, pooled, size=(8, 24), grid=(2, 6)
    ),
    "Dinov2WithRegistersModel": Case(
        hf("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", **VISION),
        16,
        5,
        pooled,
        hidden_patches(5),
    ),
    "DINOv3ViTModel": Case(
        hf("DINOv3ViTModel", "DINOv3ViTConfig", **VISION, num_register_tokens=4), 16, 5, pooled
    ),
    "ViTModel": Case(hf("ViTModel", "ViTConfig", **VISION), 16, 1, first_token, hidden_patches(1)),
    "DeiTModel": Case(hf("DeiTModel", "DeiTConfig", **VISION), 16, 2, first_token),
}


@run(HUGGING_FACE)
def test_hugging_face(case: Case) -> None:
    case.check()


# --- timm and open_clip -------------------------------------------------------------------------


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
    Case(lambda: backbone, 32, prefix, embedding, timm_patches, size, tuple(grid)).check()


def open_clip_patches(clip: Any, frames: Tensor) -> Tensor:
    result = clip.visual.forward_intermediates(
        frames, indices=1, normalize_intermediates=True, output_fmt="NLC"
    )
    return result["image_intermediates"][-1] @ clip.visual.proj


OPEN_CLIP = {
    "class_token": Case(open_clip_model(), 12, 1, encode_image, open_clip_patches),
    "wide": Case(
        open_clip_model(image_size=(8, 24)), 12, 1, encode_image, size=(8, 24), grid=(2, 6)
    ),
    "output_tokens": Case(open_clip_model(output_tokens=True), 12, 1, lambda m, x: m.visual(x)[0]),
    "mean": Case(open_clip_model(pool_type="avg"), 12, 1, encode_image, open_clip_patches),
    "mean_norm_after": Case(
        open_clip_model(pool_type="avg", final_ln_after_pool=True),
        12,
        1,
        encode_image,
        open_clip_patches,
    ),
    "mean_output_tokens": Case(
        open_clip_model(pool_type="avg", output_tokens=True), 12, 1, lambda m, x: m.visual(x)[0]
    ),
}
OPEN_CLIP_TIMM = {
    "siglip": open_clip_timm("test_vit", timm_pool="map", timm_proj="none"),
    "class_token_linear": open_clip_timm("test_vit", timm_pool="token", timm_proj="linear"),
    "mean_mlp": open_clip_timm("test_vit", timm_pool="avg", timm_proj="mlp"),
    "own_projection": open_clip_timm("test_vit", timm_pool="token", timm_proj=""),
}


@run(OPEN_CLIP)
def test_open_clip(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("build", OPEN_CLIP_TIMM.values(), ids=OPEN_CLIP_TIMM.keys())
def test_open_clip_on_timm(build: Callable[[], nn.Module]) -> None:
    model = build()
    width = model.encode_image(torch.randn(1, 3, 64, 64)).shape[1]
    Case(lambda: model, width, 1, encode_image, size=(64, 64), grid=(4, 4)).check()


def test_open_clip_projects_every_token() -> None:
    """Token by token, the class token's way through the projection is that of the patches."""
    model: Any = OPEN_CLIP_TIMM["class_token_linear"]().double().eval()
    frames = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    tokens = find_patch_tokens(model).read(model, frames)
    expected = model.visual.head(model.visual.trunk.forward_features(frames))
    torch.testing.assert_close(tokens, expected, **TOLERANCE)


def test_coca_is_refused() -> None:
    with pytest.raises(ValueError, match="attentional pool"):
        find_patch_tokens(open_clip_model(attentional_pool=True, attn_pooler_heads=2)())


# --- What is refused ----------------------------------------------------------------------------


class Wrapped(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner


def test_unknown_backbone_is_told_what_was_looked_for() -> None:
    with pytest.raises(TypeError) as caught:
        find_patch_tokens(nn.Sequential(nn.Conv2d(3, 8, 4)))
    for part in ("Sequential", "return_hidden", "output_tokens", "num_prefix_tokens", "cls_token"):
        assert part in str(caught.value)
    assert "VideoEncoder(backbone, head, tokens=my_function)" in str(caught.value)
    assert "pass backbone." not in str(caught.value)


def test_unknown_backbone_is_told_which_child_is_known() -> None:
    with pytest.raises(TypeError, match=r"'inner' is known \(timm ViT\): pass backbone\.inner"):
        find_patch_tokens(Wrapped(TimmVit()))


def test_wrapper_of_hugging_face_is_told_its_model() -> None:
    build = hf("Dinov2ForImageClassification", "Dinov2Config", **VISION)
    with pytest.raises(TypeError, match=r"pass backbone\.dinov2"):
        find_patch_tokens(build())


@pytest.mark.parametrize("build", [Clip4ClipClip, OpenAIClip], ids=["clip4clip", "openai"])
def test_patches_over_time_are_refused(build: Callable[[], Any]) -> None:
    clip = build()
    clip.visual.linear_patch = "3d"
    with pytest.raises(ValueError, match="linear_patch='2d'"):
        find_patch_tokens(clip)


def test_microsofts_x_clip_is_refused() -> None:
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
    [("BeitModel", "BeitConfig"), ("BlipVisionModel", "BlipVisionConfig")],
    ids=["norm after the pool", "norm inside"],
)
def test_look_alikes_are_unknown(name: str, config: str) -> None:
    with pytest.raises(TypeError, match="no patch tokens found"):
        find_patch_tokens(hf(name, config, **VISION)())


def test_dropped_patches_are_refused() -> None:
    backbone = hf("ViTMAEModel", "ViTMAEConfig", **VISION)()
    found = find_patch_tokens(backbone)
    with pytest.raises(ValueError, match=r"4x4 grid .* = \(2, 17, 16\), .* gave \(2, 5, 16\)"):
        found.read(backbone, torch.randn(2, 3, 16, 16))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_torchscript_is_refused() -> None:
    traced = torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2))
    with pytest.raises(TypeError, match="jit=False"):
        find_patch_tokens(traced)


def test_not_a_module_is_refused() -> None:
    with pytest.raises(TypeError, match=r"must be an nn\.Module, got str"):
        find_patch_tokens("ViT-B/32")  # type: ignore[arg-type]
