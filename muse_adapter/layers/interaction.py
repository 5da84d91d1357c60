"""Interaction of texts with the tokens of videos: EERCF's text gate, token similarities, MaxSim.

Features need not be normalised. Everything is computed in float32 at least, without parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from muse_adapter.layers.feature_checks import check_features, check_mask
from muse_adapter.layers.pairs import cosines, score_pairs, unit, unit_tokens
from muse_adapter.layers.token_weights import (
    gated_cosines,
    gated_size,
    masked,
    masked_softmax,
    weighted_similarity,
)
from muse_adapter.ops.autocast import without_autocast


class TextGatedInteraction(nn.Module):
    """EERCF's text-gated interaction block: a text turns the tokens of a video into one vector.

        gate[a, b, :] = softmax over tokens of (cos(text_a, key_bn) / temperature)
        pooled[a, b]  = unit(sum over n of gate[a, b, n] * unit(value_bn))
        score[a, b]   = cos(text_a, pooled[a, b])

    It has no parameters. The published temperatures are 0.1 for frames and 0.01 for patches.

    Args:
        temperature: Divides the cosines in the softmax.

    Raises:
        ValueError: `temperature` is not positive and finite.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if not (0 < temperature < math.inf):
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        self.temperature = temperature

    def forward(
        self, text: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Score all pairs, without a tensor (A, B, D).

        Args:
            text: (A, D), floating point.
            keys: (B, N, D), which the text is compared with.
            values: (B, N, D), which are summed; None: the keys.
            mask: (B, N), True or 1 for a valid token; None: all are valid. Masked tokens may hold
                any values.

        Returns:
            (A, B) cosines; 0, with gradient 0, for a video without a valid token.

        Raises:
            TypeError: A tensor is of the wrong type.
            ValueError: The shapes do not fit, or the mask has values other than 0 and 1.
        """
        mask = _checked(text, keys, values, mask)

        def score(
            text: Tensor, keys: Tensor, values: Tensor | None, mask: Tensor | None
        ) -> tuple[Tensor]:
            keys = unit_tokens(keys, mask)
            values = None if values is None else unit_tokens(values, mask)
            return (gated_cosines(text, cosines(text, keys), keys, values, mask, self.temperature),)

        size = gated_size(len(text), keys)
        return score_pairs(score, (unit(text),), (keys, values, mask), size)[0]

    def gate(self, text: Tensor, keys: Tensor, mask: Tensor | None = None) -> Tensor:
        """Compute the weights of the tokens; arguments as in `forward`.

        Returns:
            (A, B, N), sums of 1 over the tokens; 0 for masked tokens.
        """
        mask = _checked(text, keys, None, mask)
        with without_autocast(text.device.type):
            sims = cosines(unit(text), unit_tokens(keys, mask))
            gate = masked_softmax(sims / self.temperature, mask)
            gate = gate if mask is None else gate.masked_fill(~mask[..., None], 0)
        return gate.permute(2, 0, 1)

    def pool(
        self, text: Tensor, keys: Tensor, values: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Pool each video for each text; arguments as in `forward`.

        Returns:
            (A, B, D) of unit norm; zero for a video without a valid token.
        """
        mask = _checked(text, keys, values, mask)
        gate = self.gate(text, keys, mask)
        with without_autocast(text.device.type):
            tokens = unit_tokens(keys if values is None else values, mask)
            return unit(torch.einsum("abn,bnd->abd", gate, tokens))

    def extra_repr(self) -> str:
        """Return the settings shown by `repr`."""
        return f"temperature={self.temperature:g}"


def token_similarity(
    text: Tensor,
    tokens: Tensor,
    mask: Tensor | None = None,
    *,
    temperature: float = 0.01,
    mix: Tensor | None = None,
) -> Tensor:
    """Average the cosines of a text and the tokens of a video, weighted by their own softmax.

        sim[n]  = cos(text_a, token_bn)
        s[a, b] = sum over n of sim[n] * (softmax(sim / temperature) @ mix)[n]

    Args:
        text: (A, D), floating point.
        tokens: (B, N, D).
        mask: (B, N), True or 1 for a valid token; None: all are valid. Masked tokens get the weight
            0 before `mix` and are left out after it.
        temperature: 0 is the maximum over the tokens (equal ones share the gradient), infinity the
            mean.
        mix: (N, N), the learned matrix of X-CLIP and EERCF; None: the identity.

    Returns:
        (A, B); 0, with gradient 0, for a video without a valid token.

    Raises:
        TypeError: A tensor is of the wrong type.
        ValueError: The shapes do not fit, the mask has values other than 0 and 1, or the
            temperature is negative or NaN.
    """
    check_features(text=(text, "A D"), tokens=(tokens, "B N D"), mix=(mix, "N N"))
    mask = check_mask("mask", mask, (len(tokens), tokens.shape[1]))
    if not temperature >= 0:
        raise ValueError(f"temperature must not be negative, got {temperature}")

    def score(text: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor]:
        sims = cosines(text, unit_tokens(tokens, mask))
        return (weighted_similarity(sims, mask, temperature, mix),)

    return score_pairs(score, (unit(text),), (tokens, mask), tokens.shape[1])[0]


def late_interaction(
    words: Tensor,
    tokens: Tensor,
    word_mask: Tensor | None = None,
    token_mask: Tensor | None = None,
    *,
    reduce: str = "mean",
) -> Tensor:
    """Compare each word with its most similar token (ColBERT's MaxSim, Video-ColBERT's MeanMaxSim).

        s[a, b] = mean (or sum) over valid words w of max over valid tokens n of cos(word_aw,
        token_bn)

    Args:
        words: (A, W, D), floating point.
        tokens: (B, N, D).
        word_mask: (A, W), True or 1 for a valid word; None: all are valid.
        token_mask: (B, N), likewise for tokens.
        reduce: "mean" or "sum" over the words.

    Returns:
        (A, B); 0, with gradient 0, for a text without a valid word or a video without a valid
        token.

    Raises:
        TypeError: A tensor is of the wrong type.
        ValueError: The shapes do not fit, a mask has values other than 0 and 1, or `reduce` is
            another word.
    """
    if reduce not in ("mean", "sum"):
        raise ValueError(f'reduce must be "mean" or "sum", got {reduce!r}')
    check_features(words=(words, "A W D"), tokens=(tokens, "B N D"))
    word_mask = check_mask("word_mask", word_mask, (len(words), words.shape[1]))
    token_mask = check_mask("token_mask", token_mask, (len(tokens), tokens.shape[1]))
    unit_words = unit_tokens(words, word_mask)
    weight = unit_words.new_ones(words.shape[:2]) if word_mask is None else word_mask.to(unit_words)
    if reduce == "mean":
        weight = weight / weight.sum(1, keepdim=True).clamp(min=1)

    def score(words: Tensor, weight: Tensor, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor]:
        sims = cosines(words.flatten(0, 1), unit_tokens(tokens, mask))  # (b, N, a*W)
        best = masked(sims, mask).amax(1)
        if mask is not None:
            best = best.masked_fill(~mask.any(1, keepdim=True), 0)
        return ((best.unflatten(1, weight.shape) * weight).sum(2),)

    size = tokens.shape[1] * words.shape[1]
    return score_pairs(score, (unit_words, weight), (tokens, token_mask), size)[0]


def _checked(
    text: Tensor, keys: Tensor, values: Tensor | None, mask: Tensor | None
) -> Tensor | None:
    check_features(text=(text, "A D"), keys=(keys, "B N D"), values=(values, "B N D"))
    return check_mask("mask", mask, (len(keys), keys.shape[1]))
