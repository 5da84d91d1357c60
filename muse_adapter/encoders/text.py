"""Text embeddings of the towers people have, told apart by what they have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Text = Tensor | Mapping[str, Any]


def check_tower(tower: nn.Module) -> None:
    """Refuses what embeds no text.

    Raises:
        TypeError: `tower` is no module, or one for images alone.
    """
    if not isinstance(tower, nn.Module):
        raise TypeError(f"text must be an nn.Module, got {type(tower).__name__}")
    if _method(tower) is tower and getattr(tower, "main_input_name", "") == "pixel_values":
        raise TypeError(
            f"text must be a model that embeds text, and {type(tower).__name__} takes pixel_values "
            "alone: give the whole model (CLIPModel, SiglipModel) or its text model"
        )


def embed_text(tower: nn.Module, text: Text) -> Tensor:
    """Runs a tower on what its own tokenizer gave.

    Args:
        tower: A model of Hugging Face with `get_text_features`, or a text model of it; a model with
            `encode_text` (open_clip, OpenAI CLIP); any other module that is called with `text`.
        text: Token ids (B, L), or the mapping that tokenizers of Hugging Face return, whose entries
            are given by name.

    Returns:
        (B, D), projected, not normalised.

    Raises:
        TypeError: `text` is neither, or the tower gives no embedding.
        ValueError: The embedding has another shape.
    """
    if isinstance(text, Mapping):
        result = _method(tower)(**text)
    elif isinstance(text, Tensor):
        result = _method(tower)(text)
    else:
        raise TypeError(
            "text must be token ids (B, L), or the mapping of tensors that a tokenizer of Hugging "
            f'Face gives with return_tensors="pt", got {type(text).__name__}'
        )
    # Through transformers 4 get_text_features gives the tensor itself, later an output with it.
    for name in ("text_embeds", "pooler_output"):
        if not isinstance(result, Tensor):
            result = getattr(result, name, result)
    if not isinstance(result, Tensor):
        raise TypeError(
            f"{type(tower).__name__} must give embeddings (B, D), or an output with text_embeds or "
            f"pooler_output, got {type(result).__name__}"
        )
    if result.ndim != 2:
        raise ValueError(
            f"{type(tower).__name__} must give one embedding a text, (B, D), got shape "
            f"{tuple(result.shape)}"
        )
    return result


def _method(tower: Any) -> Callable[..., Any]:
    names = ("get_text_features", "encode_text")
    return next((getattr(tower, name) for name in names if hasattr(tower, name)), tower)
