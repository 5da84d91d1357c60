"""Scores of a text and the tokens of a video from their similarities (B, N, A)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from muse_adapter.layers.pairs import cosines, pool_videos, unit, unit_tokens
from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import values_can_be_asked

# Squared length of a pooled vector below which the Gram form loses too many digits.
_CANCELLED = 1e-3


def masked(sims: Tensor, mask: Tensor | None) -> Tensor:
    """Lower the similarities of masked tokens below all others.

    Args:
        sims: (B, N, A).
        mask: (B, N) bool, or None.

    Returns:
        (B, N, A), all finite.
    """
    return sims if mask is None else sims.masked_fill(~mask[..., None], torch.finfo(sims.dtype).min)


def masked_softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Compute the softmax over tokens; arguments as in `masked`.

    Returns:
        (B, N, A); 0 where masked, but uniform if all tokens are masked.
    """
    return masked(logits, mask).softmax(1)


def weighted_similarity(
    sims: Tensor, mask: Tensor | None, temperature: float, mix: Tensor | None
) -> Tensor:
    """Average similarities with their own softmax as weights.

    Args:
        sims: (B, N, A), 0 where masked.
        mask: (B, N) bool, or None.
        temperature: Of the softmax; 0 is the maximum, infinity the mean.
        mix: (N, N), which the weights are multiplied with, or None.

    Returns:
        (B, A).
    """
    if temperature == 0:
        lowered = masked(sims.detach(), mask)
        weights = (lowered == lowered.amax(1, keepdim=True)).to(sims.dtype)
        weights = weights / weights.sum(1, keepdim=True)
    elif temperature == math.inf:
        weights = masked_softmax(torch.zeros_like(sims), mask)
    else:
        weights = masked_softmax(sims / temperature, mask)
    if mix is not None:
        weights = mix.to(sims.dtype).T @ weights
    return (sims * weights).sum(1)


def gated_cosines(
    text: Tensor,
    sims: Tensor,
    keys: Tensor,
    values: Tensor | None,
    mask: Tensor | None,
    temperature: float,
) -> Tensor:
    """Score texts against the tokens that they gate (EERCF's block).

    With few texts or many tokens the gated sum itself is cheapest. Otherwise its products with the
    text and with itself come from the similarities and from the Gram matrix of the tokens V:

        score = gate . (V t) / sqrt(gate^T (V V^T) gate)

    Where tokens nearly cancel, rounding is all that is left of the Gram form, and the sum itself is
    taken; on a GPU and in compiled code, which cannot ask, such scores go to 0.

    Args:
        text: (A, D), of unit norm.
        sims: (B, N, A), `cosines(text, keys)`.
        keys: (B, N, D), of unit norm, 0 where masked.
        values: (B, N, D), likewise; None: the keys.
        mask: (B, N) bool, or None.
        temperature: Of the softmax.

    Returns:
        (B, A).
    """
    gate = masked_softmax(sims / temperature, mask)
    tokens = keys if values is None else values
    if _gram_is_cheaper(len(text), tokens):
        products = sims if values is None else cosines(text, values)
        product = (gate * products).sum(1)
        square = (gate * ((tokens @ tokens.mT) @ gate)).sum(1)
        if not (values_can_be_asked(square) and bool((square < _CANCELLED).any())):
            return product * square.clamp(min=4 * torch.finfo(square.dtype).eps).rsqrt()
    pooled = gate.mT @ tokens  # (B, A, D)
    product = (pooled * text).sum(2)
    square = pooled.square().sum(2)
    # Unit vectors that cancel leave no direction, and a video without a token has none.
    smallest = torch.finfo(square.dtype).eps ** 2
    return product * square.clamp(min=smallest).rsqrt()


def gated_size(texts: int, tokens: Tensor) -> int:
    """Return how many numbers `gated_cosines` needs for a pair; tokens are (B, N, D)."""
    size = tokens.shape[1]
    return size if _gram_is_cheaper(texts, tokens) else max(size, tokens.shape[2])


def _gram_is_cheaper(texts: int, tokens: Tensor) -> bool:
    _, size, dim = tokens.shape
    return size <= texts and size < dim


def pool_by_own_text(
    text: Tensor,
    keys: Tensor,
    values: Tensor | None,
    mask: Tensor | None,
    temperature: float,
) -> Tensor:
    """Pool each video with the gate of its own text, through which no gradient flows.

    Args:
        text: (B, D), of unit norm.
        keys: (B, N, D).
        values: (B, N, D); None: the keys.
        mask: (B, N) bool, or None.
        temperature: Of the gate.

    Returns:
        (B, D) of unit norm; zero for a video without a valid token.
    """

    def pool(text: Tensor, keys: Tensor, values: Tensor | None, mask: Tensor | None) -> Tensor:
        tokens = unit_tokens(keys if values is None else values, mask)
        with torch.no_grad():
            compared = tokens if values is None else unit_tokens(keys, mask)
            logits = (compared @ text[:, :, None])[..., 0] / temperature  # (B, N)
            if mask is not None:
                logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
            gate = logits.softmax(1)
        return unit((gate[:, None] @ tokens)[:, 0])

    with without_autocast(text.device.type):
        return pool_videos(pool, (text, keys, values, mask), keys.shape[1:].numel())
