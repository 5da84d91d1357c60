"""Count what a step keeps in memory, without computing or allocating anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers import CLIPConfig, CLIPModel

from muse_adapter.backbones.checkpointing import set_grad_checkpointing

COPIES = 4  # of the trained weights: themselves, gradients and AdamW's two moments


def kept_for_backward(run: Callable[[], Any], model: nn.Module) -> int:
    """Count the bytes of the tensors that a forward pass keeps for its backward pass.

    Tensors that share their memory count once, and the model's weights not at all.
    """
    weights = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage  # held, so that no other one gets its address
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def clip_vit_b32() -> CLIPModel:
    """Make a CLIP of this size: the defaults of transformers."""
    return CLIPModel(CLIPConfig(projection_dim=512))


def clip_bytes(videos: int, frames: int, words: int, *, checkpointing: bool) -> int:
    """Count what a step of CLIP ViT-B/32 keeps, in bfloat16 where autocast computes in it.

    Args:
        videos: Videos, and captions, of a step.
        frames: Frames of a video.
        words: Tokens of a caption.
        checkpointing: Keep the inputs of the layers only, and what one layer keeps of all frames
            while it is computed again.
    """
    with FakeTensorMode():  # shapes and types alone
        model = clip_vit_b32().train()
        if checkpointing:
            set_grad_checkpointing(model)
        size = model.config.vision_config.image_size
        pixels = torch.empty(videos * frames, 3, size, size)
        tokens = torch.zeros(videos, words, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16):
            kept = kept_for_backward(lambda: _embed(model, pixels, tokens), model)
            if checkpointing:
                vision = model.vision_model
                hidden = vision.embeddings(pixels).requires_grad_()
                layer = vision.encoder.layers[0]
                layer.gradient_checkpointing = False
                kept += kept_for_backward(lambda: layer(hidden, None), model)
    return kept


def _embed(model: CLIPModel, pixels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the head's input, and the embeddings of captions."""
    vision = model.vision_model
    patches = model.visual_projection(vision.post_layernorm(vision(pixels).last_hidden_state))
    return patches, model.text_projection(model.text_model(tokens).pooler_output)


def state_bytes(*models: nn.Module) -> int:
    """Count weights, gradients and AdamW's moments of models that are all trained."""
    return COPIES * sum(weight.nbytes for model in models for weight in model.parameters())
