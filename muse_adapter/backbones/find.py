"""Recognise the family of a backbone by its attributes, without importing any library."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from muse_adapter.backbones.clip import (
    find_clip4clip,
    find_open_clip,
    find_open_clip_timm,
    find_openai_clip,
)
from muse_adapter.backbones.huggingface import (
    find_hf_clip,
    find_hf_siglip,
    find_hf_vit,
    reject_video_models,
)
from muse_adapter.backbones.timm_vit import find_timm
from muse_adapter.backbones.tokens import PatchTokens

# At most one matches, except that CLIP4Clip's CLIP also looks like OpenAI's and is tried first.
FAMILIES = (
    (find_clip4clip, "CLIP4Clip, X-CLIP: encode_image(..., return_hidden=True) and visual.proj"),
    (
        find_openai_clip,
        "OpenAI CLIP: visual with conv1, class_embedding, transformer, ln_post, proj",
    ),
    (find_open_clip, "open_clip: the same with output_tokens"),
    (find_open_clip_timm, "open_clip on timm: visual with a ViT as trunk, and head"),
    (find_timm, "timm ViT: forward_features, forward_head, num_prefix_tokens, patch_embed"),
    (find_hf_clip, "Hugging Face CLIP: vision_model, or itself, with pre_layrnorm, post_layernorm"),
    (find_hf_siglip, "Hugging Face SigLIP: vision_model, or itself, with post_layernorm"),
    (find_hf_vit, "Hugging Face ViT, DINOv2, DINOv3: embeddings.cls_token and layernorm"),
)

CUSTOM_TOKENS = """\
    head = MultiScaleMamba(dim=C, num_prefix_tokens=1)
    encoder = VideoEncoder(backbone, head, tokens=my_function)
where my_function takes frames (n, 3, height, width) and returns tokens (n, N, C)"""


def find_patch_tokens(backbone: nn.Module) -> PatchTokens:
    """Find how to read the patch tokens of a backbone.

    Args:
        backbone: An OpenAI CLIP, the CLIP of CLIP4Clip or X-CLIP, an open_clip or timm model, or
            a vision or CLIP-like model of Hugging Face's transformers.

    Returns:
        The reader of its family, with the width and the number of prefix tokens of this backbone.

    Raises:
        TypeError: The backbone is not an `nn.Module`, or of an unknown family; the message lists
            the known families and shows how to pass a custom function.
        ValueError: The family is known, but this model of it cannot encode frames one by one.
    """
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone must be an nn.Module, got {type(backbone).__name__}")
    if isinstance(backbone, torch.jit.ScriptModule):
        raise TypeError(
            "backbone is a TorchScript archive, whose tokens are not accessible; load the model "
            "itself (OpenAI CLIP: clip.load(name, jit=False))"
        )
    found = _first_match(backbone)
    if found is None:
        raise TypeError(_unknown_message(backbone))
    return found


def _first_match(backbone: Any) -> PatchTokens | None:
    reject_video_models(backbone)
    for find, _ in FAMILIES:
        if (found := find(backbone)) is not None:
            return found
    return None


def _unknown_message(backbone: nn.Module) -> str:
    lines = [f"no patch tokens found in {type(backbone).__name__}. Supported are"]
    lines += [f"  - {description}" for _, description in FAMILIES]
    for name, child in backbone.named_children():
        try:
            found = _first_match(child)
        except ValueError:  # known but not supported: nothing to recommend
            continue
        if found is not None:
            lines.append(f"Its child {name!r} is supported ({found.family}): pass backbone.{name}.")
    return "\n".join([*lines, "For any other backbone:", CUSTOM_TOKENS])
