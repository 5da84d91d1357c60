"""Word features of common text towers, one for each token of a text."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.encoders.text import Text, embed_text

# The last norm of a text transformer: Hugging Face; OpenAI CLIP and open_clip.
_NORMS = ("final_layer_norm", "ln_final")


def embed_words(tower: nn.Module, text: Text) -> tuple[Tensor, Tensor]:
    """Compute the features of every word of tokenized texts.

    A word is a token of the text, its start and end tokens included, and always the token that the
    tower's embedding is read from: its feature is that embedding, not normalised. Padding is not a
    word, whether the tower sees it or not.

    Args:
        tower: A CLIP-like or SigLIP-like Hugging Face model or its text model; OpenAI CLIP,
            open_clip and CLIP4Clip models; any other module that, called with `text`, returns words
            (A, W, D) and their mask (A, W).
        text: As for `embed_text`; a mapping needs `input_ids`.

    Returns:
        Words (A, W, D), projected as the tower's embedding is, not normalised; their mask (A, W),
        bool, True for a word.

    Raises:
        TypeError: The tower is of another kind and returns no such pair.
        ValueError: The pair has other shapes, or as for `embed_text`.
    """
    transformer = _text_transformer(tower)
    if transformer is None:
        return _own_words(tower, text)
    hidden = _run_and_capture(tower, transformer, text)
    ids = text if isinstance(text, Tensor) else text["input_ids"]
    if hidden.shape[:-1] != ids.shape:
        raise TypeError(
            f"{type(tower).__name__} does not normalise one feature for each token; pass a module "
            "that returns words (A, W, D) and their mask (A, W)"
        )
    mask = _word_mask(transformer, ids)
    if not isinstance(text, Tensor) and text.get("attention_mask") is not None:
        mask = mask & (text["attention_mask"] != 0)
    return _project(tower, transformer, hidden), mask


def _text_transformer(tower: Any) -> Any:
    """Return the module inside a tower that has the last norm; None for other towers."""
    inner = getattr(tower, "text_model", getattr(tower, "text", tower))
    inner = getattr(inner, "text_model", inner)  # up to transformers 4
    return inner if any(hasattr(inner, name) for name in _NORMS) else None


def _run_and_capture(tower: nn.Module, transformer: Any, text: Text) -> Tensor:
    """Run a tower unchanged and return the output (A, L, width) of its last norm."""
    norm = next(getattr(transformer, name) for name in _NORMS if hasattr(transformer, name))
    outputs: list[Tensor] = []
    handle = norm.register_forward_hook(lambda _m, _a, output: outputs.append(output))
    try:
        embed_text(tower, text)
    finally:
        handle.remove()
    return outputs[-1]


def _project(tower: Any, transformer: Any, hidden: Tensor) -> Tensor:
    """Apply the projection of the pooled token to all of them, if the tower has one."""
    projections = (
        getattr(tower, "text_projection", None),
        getattr(transformer, "text_projection", None),
        getattr(transformer, "head", None),  # SigLIP's
    )
    projection = next((found for found in projections if found is not None), None)
    if projection is None:
        return hidden
    if isinstance(projection, nn.Module):
        return projection(hidden.to(next(projection.parameters()).dtype))
    return hidden.to(projection.dtype) @ projection


def _word_mask(transformer: Any, ids: Tensor) -> Tensor:
    """Return which of the tokens (A, L) are words, by what the tower reads its embedding from."""
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = positions == ids.shape[1] - 1
    pool = getattr(transformer, "text_pool_type", getattr(transformer, "pool_type", None))
    if pool == "last" or (pool is None and hasattr(transformer, "head")):
        # Padded to full length with an id that configurations do not name reliably: it is the run
        # of equal ids at the end.
        padding = (ids == ids[:, -1:]).flip(1).cumprod(1).flip(1).bool()
        return ~padding | last
    if pool not in (None, "argmax", "eos"):
        raise TypeError(f"words of a text tower with pool_type {pool!r} are not supported")
    return positions <= _end_of_text(transformer, pool, ids)[:, None]


def _end_of_text(transformer: Any, pool: str | None, ids: Tensor) -> Tensor:
    """Return the position (A,) of the token that ends each text, as the tower finds it."""
    end = getattr(transformer, "eos_token_id", None)  # Hugging Face
    if pool == "eos":
        end = getattr(transformer, "text_eos_id", getattr(transformer, "eos_id", None))
    if end is None or (pool is None and end == 2):  # CLIP's older configurations say 2 wrongly
        return ids.argmax(1)  # the highest id of CLIP's vocabulary
    return (ids == end).int().argmax(1)


def _own_words(tower: nn.Module, text: Text) -> tuple[Tensor, Tensor]:
    """Call a module of its own kind and check the pair that it returns."""
    result = tower(text) if isinstance(text, Tensor) else tower(**text)
    pair = isinstance(result, tuple) and len(result) == 2
    if not pair or not all(isinstance(tensor, Tensor) for tensor in result):
        raise TypeError(
            f"{type(tower).__name__} must return words (A, W, D) and their mask (A, W), got "
            f"{type(result).__name__}"
        )
    words, mask = result
    if words.ndim != 3 or mask.shape != words.shape[:2]:
        raise ValueError(
            f"{type(tower).__name__} must return words (A, W, D) and their mask (A, W), got "
            f"{tuple(words.shape)} and {tuple(mask.shape)}"
        )
    return words, mask != 0
