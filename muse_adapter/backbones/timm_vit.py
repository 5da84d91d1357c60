"""Patch tokens of timm's vision transformers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.backbones.tokens import Grid, PatchTokens, embedding_first


def find_timm(backbone: Any) -> PatchTokens | None:
    """A timm ViT: tokens after its last norm, at its own width.

    Its image embedding is what ``forward_head(…, pre_logits=True)`` gives: the class token, or a
    pooled vector (SigLIP's attention pool, the mean of the patches), which then comes first in
    place of the model's own prefix tokens. The classifier or projection ``head`` is not applied.
    """
    if not is_timm_vit(backbone):
        return None
    if _class_token_is_embedding(backbone):
        prefix, read = backbone.num_prefix_tokens, _read_normalised
    elif backbone.global_pool == "":
        prefix, read = 0, _read_patches
    else:
        prefix, read = 1, _read_pooled
    return PatchTokens("timm ViT", backbone.num_features, prefix, read, grid_of_timm)


def is_timm_vit(module: Any) -> bool:
    """Whether this has what timm's ViTs have."""
    names = ("forward_features", "forward_head", "num_prefix_tokens", "num_features", "global_pool")
    return isinstance(getattr(module, "patch_embed", None), nn.Module) and all(
        hasattr(module, name) for name in names
    )


def timm_dtype(model: Any) -> torch.dtype:
    """The type its patch embedding computes in; timm does not convert its input."""
    return next(model.patch_embed.parameters()).dtype


def grid_of_timm(model: Any, size: Grid) -> Grid:
    """Patch grid of frames of ``size`` pixels, as the patch embedding pads or cuts them."""
    height, width = model.patch_embed.dynamic_feat_size(size)
    return int(height), int(width)


def _class_token_is_embedding(model: Any) -> bool:
    has_class_token = getattr(model, "cls_token", None) is not None
    # DeiT's distilled models pool the mean of two tokens and call that "token" too.
    return has_class_token and model.global_pool == "token" and not hasattr(model, "dist_token")


def _read_normalised(model: Any, frames: Tensor) -> Tensor:
    # Models that normalise after pooling have an identity for `norm` and a real `fc_norm`.
    return model.fc_norm(model.forward_features(frames.to(timm_dtype(model))))


def _read_patches(model: Any, frames: Tensor) -> Tensor:
    return _read_normalised(model, frames)[:, model.num_prefix_tokens :]


def _read_pooled(model: Any, frames: Tensor) -> Tensor:
    features = model.forward_features(frames.to(timm_dtype(model)))
    patches = model.fc_norm(features[:, model.num_prefix_tokens :])
    return embedding_first(model.forward_head(features, pre_logits=True), patches)
