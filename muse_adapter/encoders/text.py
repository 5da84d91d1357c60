"""Text embeddings of common text towers, recognised by duck typing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

Text = Tensor | Mapping[str, Any]


def check_tower(tower: nn.Module) -> None:
    """Check that a module can embed texts.

    Raises:
        TypeError: `tower` is not a module, or it takes images only.
    """
    if not isinstance(tower, nn.Module):
        raise TypeError(f"text must be an nn.Module, got {type(tower).__name__}")
    if _embed_method(tower) is tower and getattr(tower, "main_input_name", "") == "pixel_values":
        raise TypeError(
            f"text must be a model that embeds texts, but {type(tower).__name__} takes "
            "pixel_values only: pass the whole model (CLIPModel, SiglipModel) or its text model"
        )


def embed_text(tower: nn.Module, text: Text) -> Tensor:
    """Embed tokenized texts with a text tower.

    Args:
        tower: A Hugging Face model with `get_text_features` or one of its text models; a model with
            `encode_text` (open_clip, OpenAI CLIP); any other module that is called with `text`.
        text: Token ids (B, L), or the mapping that Hugging Face tokenizers return, whose entries
            are passed by name.

    Returns:
        (B, D), projected, not normalised.

    Raises:
        TypeError: `text` is neither, or the tower returns no embedding.
        ValueError: The embedding has another shape, or the tower reads its last token, as SigLIP
            does, and the texts are not padded to its full length.
    """
    _check_padding(tower, text)
    if isinstance(text, Mapping):
        result = _embed_method(tower)(**text)
    elif isinstance(text, Tensor):
        result = _embed_method(tower)(text)
    else:
        raise TypeError(
            "text must be token ids (B, L), or the mapping of tensors that a Hugging Face "
            f'tokenizer returns with return_tensors="pt", got {type(text).__name__}'
        )
    # Up to transformers 4 get_text_features returns a tensor, later an output that contains it.
    for name in ("text_embeds", "pooler_output"):
        if not isinstance(result, Tensor):
            result = getattr(result, name, result)
    if not isinstance(result, Tensor):
        raise TypeError(
            f"{type(tower).__name__} must return embeddings (B, D), or an output with text_embeds "
            f"or pooler_output, got {type(result).__name__}"
        )
    if result.ndim != 2:
        raise ValueError(
            f"{type(tower).__name__} must return one embedding per text, (B, D), got shape "
            f"{tuple(result.shape)}"
        )
    return result


def _check_padding(tower: Any, text: Any) -> None:
    """Check that texts for a tower that reads its last token have the tower's full length.

    Raises:
        ValueError: They are shorter, or padding is masked, which such towers never saw.
    """
    length = _length_of_last_token_tower(tower)
    if length is None:
        return
    ids = text.get("input_ids") if isinstance(text, Mapping) else text
    mask = text.get("attention_mask") if isinstance(text, Mapping) else None
    if isinstance(ids, Tensor) and ids.ndim == 2 and ids.shape[1] < length:
        raise ValueError(
            f"{type(tower).__name__} embeds a text by its last token and was trained with texts "
            f"padded to {length} tokens, got {ids.shape[1]}, which would give other embeddings: "
            f'tokenizer(texts, padding="max_length", max_length={length}, truncation=True, '
            'return_tensors="pt")'
        )
    if isinstance(mask, Tensor) and not bool((mask != 0).all()):
        raise ValueError(
            f"{type(tower).__name__} was trained without an attention mask, so that its texts see "
            "their padding: pass input_ids alone"
        )


def _length_of_last_token_tower(tower: Any) -> int | None:
    """Return the full length of texts in tokens, for SigLIP of either library; else None."""
    inner = getattr(tower, "text_model", tower)  # SiglipModel
    inner = getattr(inner, "text_model", inner)  # its text model, up to transformers 4
    # CLIP's text models have no `head`: they read the token of the end of the text.
    if hasattr(inner, "final_layer_norm") and isinstance(getattr(inner, "head", None), nn.Linear):
        positions = getattr(inner.embeddings, "position_embedding", None)
        return getattr(positions, "num_embeddings", None)
    inner = getattr(tower, "text", tower)  # open_clip's CustomTextCLIP
    pool = getattr(inner, "pool_type", getattr(inner, "text_pool_type", None))
    length = getattr(inner, "context_length", None)
    return length if pool == "last" and isinstance(length, int) else None


def _embed_method(tower: Any) -> Callable[..., Any]:
    names = ("get_text_features", "encode_text")
    return next((getattr(tower, name) for name in names if hasattr(tower, name)), tower)
