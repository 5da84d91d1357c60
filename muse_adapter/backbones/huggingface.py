"""Patch tokens of the vision models in Hugging Face's transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.backbones.tokens import Grid, PatchTokens, embedding_first


def find_hf_clip(backbone: Any) -> PatchTokens | None:
    """CLIPModel, CLIPVisionModelWithProjection (projected) and CLIPVisionModel (not projected).

    Models of the same build (MetaCLIP 2, Chinese-CLIP, AltCLIP) are read alike.
    """
    vision = _vision(backbone)
    if hasattr(getattr(vision, "config", None), "mit_hidden_size"):
        raise ValueError(
            f"{type(backbone).__name__} is Microsoft's X-CLIP: its frames attend to each other, so "
            "they cannot be encoded one by one (the X-CLIP that grew out of CLIP4Clip is another "
            "model, and can)"
        )
    # BLIP has all of this but `pre_layrnorm` (sic), and normalises its tokens itself.
    if not _has(vision, "embeddings", "pre_layrnorm", "post_layernorm", "config"):
        return None
    projection = getattr(backbone, "visual_projection", None)
    if projection is None:
        return PatchTokens("Hugging Face CLIP", vision.config.hidden_size, 1, _read_clip, _grid_of)
    width = projection.out_features
    return PatchTokens("Hugging Face CLIP", width, 1, _read_projected_clip, _grid_of)


def _read_clip(backbone: Any, frames: Tensor) -> Tensor:
    vision = _vision(backbone)
    # `last_hidden_state` of CLIP stands before the norm, unlike that of its neighbours below.
    return vision.post_layernorm(vision(pixel_values=frames)[0])


def _read_projected_clip(backbone: Any, frames: Tensor) -> Tensor:
    return backbone.visual_projection(_read_clip(backbone, frames))


def find_hf_siglip(backbone: Any) -> PatchTokens | None:
    """SiglipModel, SiglipVisionModel and the NaFlex models of SigLIP 2 (Siglip2Model).

    They have no class token; the embedding of their attention pool comes first in its place.
    """
    vision = _vision(backbone)
    if not _has(vision, "embeddings", "post_layernorm", "use_head", "config"):
        return None
    if hasattr(vision.embeddings, "class_embedding") or hasattr(vision, "pre_layrnorm"):
        return None
    width = vision.config.hidden_size
    prefix = int(vision.use_head)
    return PatchTokens("Hugging Face SigLIP", width, prefix, _read_siglip, _grid_of)


def _read_siglip(backbone: Any, frames: Tensor) -> Tensor:
    vision = _vision(backbone)
    if isinstance(vision.embeddings.patch_embedding, nn.Linear):
        result = _run_patchified(vision, frames)
    else:
        result = vision(pixel_values=frames)
    return embedding_first(result[1], result[0]) if vision.use_head else result[0]


def _run_patchified(vision: Any, frames: Tensor) -> Any:
    """Runs a model that takes patches, each one flattened as (row, column, channel)."""
    height, width = _grid_of(vision, (frames.shape[-2], frames.shape[-1]))
    patch = vision.config.patch_size
    frames = frames[..., : height * patch, : width * patch]
    patches = frames.unflatten(3, (width, patch)).unflatten(2, (height, patch))
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (n, HW, patch*patch*3)
    n, device = len(frames), frames.device
    mask = torch.ones(n, height * width, dtype=torch.long, device=device)
    shapes = torch.tensor([[height, width]], device=device).expand(n, 2)
    return vision(patches, mask, shapes)  # transformers 4 and 5 name the mask differently


def find_hf_vit(backbone: Any) -> PatchTokens | None:
    """Dinov2Model (with registers), ViTModel and others with a class token and a last norm inside.

    The class token is that of ``last_hidden_state``; ViTModel's tanh pooler, made for its
    classifier, is not applied.
    """
    if not _has(backbone, "embeddings", "config") or not hasattr(backbone.config, "hidden_size"):
        return None
    norm = getattr(backbone, "layernorm", getattr(backbone, "norm", None))
    # An identity here means that the norm comes after the pool (BEiT).
    if not hasattr(backbone.embeddings, "cls_token") or not isinstance(norm, nn.LayerNorm):
        return None
    prefix = 1 + getattr(backbone.config, "num_register_tokens", 0)
    prefix += int(hasattr(backbone.embeddings, "distillation_token"))
    width = backbone.config.hidden_size
    return PatchTokens("Hugging Face ViT", width, prefix, _read_vit, _grid_of)


def _read_vit(backbone: Any, frames: Tensor) -> Tensor:
    return backbone(pixel_values=frames)[0]


def _vision(backbone: Any) -> Any:
    # Through transformers 4 the vision models are shells around a child of this name too.
    return getattr(backbone, "vision_model", backbone)


def _has(module: Any, *names: str) -> bool:
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in names)


def _grid_of(backbone: Any, size: Grid) -> Grid:
    patch = _vision(backbone).config.patch_size
    patch = (patch, patch) if isinstance(patch, int) else tuple(patch)
    return size[0] // patch[0], size[1] // patch[1]
