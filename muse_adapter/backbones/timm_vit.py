"""Patch tokens of timm's vision transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.backbones.tokens import Grid, PatchTokens, as_pair, prepend_embedding


def find_timm(backbone: Any) -> PatchTokens | None:
    """Match a timm ViT.

    Tokens are taken after the final norm, at the model's own width. The image embedding is that of
    `forward_head(x, pre_logits=True)`: the class token, or a pooled vector (SigLIP's attention
    pool, the mean of the patches), which then replaces the model's prefix tokens. The classifier or
    projection `head` is not applied.
    """
    if not is_timm_vit(backbone):
        return None
    if _class_token_is_embedding(backbone):
        prefix, read = backbone.num_prefix_tokens, _read_normalised
    elif backbone.global_pool == "":
        prefix, read = 0, _read_patches
    else:
        prefix, read = 1, _read_pooled
    return PatchTokens("timm ViT", backbone.num_features, prefix, read, timm_grid, timm_size)


def is_timm_vit(module: Any) -> bool:
    """Return whether a module has the attributes of a timm ViT."""
    names = ("forward_features", "forward_head", "num_prefix_tokens", "num_features", "global_pool")
    return isinstance(getattr(module, "patch_embed", None), nn.Module) and all(
        hasattr(module, name) for name in names
    )


def timm_dtype(model: Any) -> torch.dtype:
    """Return the dtype of the patch embedding, to which timm does not convert its input."""
    return next(model.patch_embed.parameters()).dtype


def timm_grid(model: Any, size: Grid) -> Grid:
    """Return the patch grid of frames of `size` pixels, after the model's padding or cropping."""
    height, width = model.patch_embed.dynamic_feat_size(size)
    return int(height), int(width)


def timm_size(model: Any) -> Grid | None:
    """Return the frame size of a model; None if it resizes its positions to any grid."""
    size = getattr(model.patch_embed, "img_size", None)
    strict = getattr(model.patch_embed, "strict_img_size", True)
    return as_pair(size) if size is not None and strict else None


def _class_token_is_embedding(model: Any) -> bool:
    has_class_token = getattr(model, "cls_token", None) is not None
    # DeiT's distilled models average two tokens and also call that "token".
    return has_class_token and model.global_pool == "token" and not hasattr(model, "dist_token")


def _read_normalised(model: Any, frames: Tensor) -> Tensor:
    # Models that normalise after pooling have an identity as `norm` and the norm as `fc_norm`.
    return model.fc_norm(model.forward_features(frames.to(timm_dtype(model))))


def _read_patches(model: Any, frames: Tensor) -> Tensor:
    return _read_normalised(model, frames)[:, model.num_prefix_tokens :]


def _read_pooled(model: Any, frames: Tensor) -> Tensor:
    features = model.forward_features(frames.to(timm_dtype(model)))
    patches = model.fc_norm(features[:, model.num_prefix_tokens :])
    return prepend_embedding(model.forward_head(features, pre_logits=True), patches)
