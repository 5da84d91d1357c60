"""Patch tokens of the vision models in Hugging Face transformers."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.backbones.tokens import Grid, PatchTokens, as_pair, prepend_embedding

# Fields of the configs of video models: X-CLIP, TimeSformer, ViViT, VideoMAE, V-JEPA 2.
_VIDEO_FIELDS = ("num_frames", "tubelet_size", "frames_per_clip", "mit_hidden_size")


def reject_video_models(backbone: Any) -> None:
    """Refuse transformers of whole videos, which cannot encode frames one by one.

    Raises:
        ValueError: It is one.
    """
    config = getattr(_vision(backbone), "config", None)
    # Some image models inherit a field and leave it None.
    field = next((n for n in _VIDEO_FIELDS if getattr(config, n, None) is not None), None)
    if field is None:
        return
    name = type(backbone).__name__
    if field == "mit_hidden_size" or hasattr(config, "mit_hidden_size"):
        name += ", which is Microsoft's X-CLIP (that derived from CLIP4Clip is supported),"
    raise ValueError(
        f"{name} is a video transformer (its config has {field}): its frames attend to each other, "
        "so they cannot be encoded one by one"
    )


def find_hf_clip(backbone: Any) -> PatchTokens | None:
    """Match CLIPModel, CLIPVisionModelWithProjection and CLIPVisionModel (without projection).

    Models of the same structure (MetaCLIP 2, Chinese-CLIP, AltCLIP) are read the same way.
    """
    vision = _vision(backbone)
    # BLIP has all of these but `pre_layrnorm` (sic), and normalises its tokens itself.
    if not _has(vision, "embeddings", "pre_layrnorm", "post_layernorm", "config"):
        return None
    projection = getattr(backbone, "visual_projection", None)
    if projection is None:
        width = vision.config.hidden_size
        return PatchTokens("Hugging Face CLIP", width, 1, _read_clip, _grid, _size)
    width = projection.out_features
    return PatchTokens("Hugging Face CLIP", width, 1, _read_projected_clip, _grid, _size)


def _read_clip(backbone: Any, frames: Tensor) -> Tensor:
    vision = _vision(backbone)
    # Unlike in the other families, CLIP's `last_hidden_state` comes before the last norm.
    return vision.post_layernorm(vision(pixel_values=frames)[0])


def _read_projected_clip(backbone: Any, frames: Tensor) -> Tensor:
    return backbone.visual_projection(_read_clip(backbone, frames))


def find_hf_siglip(backbone: Any) -> PatchTokens | None:
    """Match SiglipModel, SiglipVisionModel and the NaFlex models of SigLIP 2 (Siglip2Model).

    They have no class token; the embedding of their attention pool takes its place.
    """
    vision = _vision(backbone)
    if not _has(vision, "embeddings", "post_layernorm", "use_head", "config"):
        return None
    if hasattr(vision.embeddings, "class_embedding") or hasattr(vision, "pre_layrnorm"):
        return None
    width = vision.config.hidden_size
    prefix = int(vision.use_head)
    return PatchTokens("Hugging Face SigLIP", width, prefix, _read_siglip, _grid, _size)


def _read_siglip(backbone: Any, frames: Tensor) -> Tensor:
    vision = _vision(backbone)
    if isinstance(vision.embeddings.patch_embedding, nn.Linear):
        result = _run_on_patches(vision, frames)
    else:
        result = vision(pixel_values=frames)
    return prepend_embedding(result[1], result[0]) if vision.use_head else result[0]


def _run_on_patches(vision: Any, frames: Tensor) -> Any:
    """Run a model whose input is patches, each flattened as (row, column, channel)."""
    height, width = _grid(vision, (frames.shape[-2], frames.shape[-1]))
    patch = vision.config.patch_size
    frames = frames[..., : height * patch, : width * patch]
    patches = frames.unflatten(3, (width, patch)).unflatten(2, (height, patch))
    patches = patches.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)  # (n, HW, patch*patch*3)
    n, device = len(frames), frames.device
    mask = torch.ones(n, height * width, dtype=torch.long, device=device)
    shapes = torch.tensor([[height, width]], device=device).expand(n, 2)
    return vision(patches, mask, shapes)  # transformers 4 and 5 name the mask differently


def find_hf_vit(backbone: Any) -> PatchTokens | None:
    """Match Dinov2Model (with registers), ViTModel and others with a class token and a final norm.

    Tokens are `last_hidden_state`; the tanh pooler of ViTModel, made for its classifier, is not
    applied.
    """
    if not _has(backbone, "embeddings", "config") or not hasattr(backbone.config, "hidden_size"):
        return None
    norm = getattr(backbone, "layernorm", getattr(backbone, "norm", None))
    # BEiT has an identity here: its norm comes after the pool.
    if not hasattr(backbone.embeddings, "cls_token") or not isinstance(norm, nn.LayerNorm):
        return None
    prefix = 1 + getattr(backbone.config, "num_register_tokens", 0)
    prefix += int(hasattr(backbone.embeddings, "distillation_token"))
    width = backbone.config.hidden_size
    return PatchTokens("Hugging Face ViT", width, prefix, _read_vit, _grid, _size)


def _read_vit(backbone: Any, frames: Tensor) -> Tensor:
    return backbone(pixel_values=frames)[0]


def _vision(backbone: Any) -> Any:
    # Up to transformers 4 the vision models, too, wrap a child of this name.
    return getattr(backbone, "vision_model", backbone)


def _has(module: Any, *names: str) -> bool:
    return isinstance(module, nn.Module) and all(hasattr(module, name) for name in names)


def _grid(backbone: Any, size: Grid) -> Grid:
    patch = as_pair(_vision(backbone).config.patch_size)
    return size[0] // patch[0], size[1] // patch[1]


def _size(backbone: Any) -> Grid | None:
    """Return the frame size; None for models that always resize their positions (DINOv2)."""
    vision = _vision(backbone)
    size = getattr(vision.config, "image_size", None)
    # Where resizing is an argument, it is off unless asked for.
    fixed = "interpolate_pos_encoding" in inspect.signature(vision.embeddings.forward).parameters
    return as_pair(size) if size is not None and fixed else None
