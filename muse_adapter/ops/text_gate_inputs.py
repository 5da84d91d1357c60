"""Scores of a text and the stored tokens of candidates: what they are computed from, and how."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from muse_adapter.ops.rows import Rows, groups, joined
from muse_adapter.ops.unit import unit


class TextGateInputs(NamedTuple):
    """Arguments of `muse_adapter.ops.text_gated_scores`, checked.

    Attributes:
        keys: (K, ..., D), or K tensors (..., D): N tokens of each candidate.
        values: Likewise, or None.
        text: (D,), in the type of the sums, as `mean_query` and `mix` are.
        mean_query: (D,), or None: the text at unit norm.
        mask: (K, N) bool, or None.
        mix: (N, N), or None.
        weak_temperature: Of the token similarity.
        gate_temperature: Of the gate.
        weights: Of the three terms of a score.
        tokens: N.
    """

    keys: Rows
    values: Rows | None
    text: Tensor
    mean_query: Tensor | None
    mask: Tensor | None
    mix: Tensor | None
    weak_temperature: float
    gate_temperature: float
    weights: tuple[float, float, float]
    tokens: int

    def compose(self) -> tuple[Tensor, Tensor]:
        """Compute the scores and norms by operators of torch, candidates in groups."""
        text = unit(self.text)
        mean_query = text if self.mean_query is None else self.mean_query
        parts = []
        for part, keys in groups(self.keys):
            mask = None if self.mask is None else self.mask[part]
            tokens, norms = self._tokens(keys, mask)
            sims = tokens @ text * _inverse(norms)
            terms = [self._weak(sims, mask)]
            ranges = [norms]
            if self.values is not None:
                tokens, norms = self._tokens(joined(self.values, part), mask)
                ranges.append(norms)
                gate = _softmax(sims, self.gate_temperature, mask)
                factors = torch.stack([gate, torch.ones_like(gate)], 1) * _inverse(norms)[:, None]
                sums = factors @ tokens  # (k, 2, D)
                products = (sums * torch.stack([text, mean_query])).sum(2)
                squares = sums.square().sum(2)
                # Unit vectors that cancel leave no direction, and a video without a token has none.
                cancelled = torch.finfo(squares.dtype).eps ** 2
                terms += (products * squares.clamp(min=cancelled).rsqrt()).unbind(1)
            smallest, largest = torch.cat(ranges, 1).aminmax(dim=1)
            pairs = zip(self.weights[: len(terms)], terms, strict=True)
            score = sum((w * term for w, term in pairs if w), torch.zeros_like(smallest))
            if mask is not None:
                score = score.masked_fill(~mask.any(1), 0)  # NaN if the text or the mix is
            parts.append((score, torch.stack([smallest, largest], 1)))
        all_scores, all_norms = (torch.cat(results) for results in zip(*parts, strict=True))
        return all_scores, all_norms

    def _tokens(self, group: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return tokens (k, N, D), 0 where masked, and their norms (k, N), 1 where masked."""
        tokens = group.flatten(1, -2).to(self.text.dtype)
        if mask is None:
            return tokens, torch.linalg.vector_norm(tokens, dim=2)
        tokens = tokens.masked_fill(~mask[..., None], 0)
        return tokens, torch.linalg.vector_norm(tokens, dim=2).masked_fill(~mask, 1)

    def _weak(self, sims: Tensor, mask: Tensor | None) -> Tensor:
        """Compute the token similarities (k,) from cosines (k, N), which are 0 where masked."""
        if self.weak_temperature == 0:
            lowered = sims if mask is None else sims.masked_fill(~mask, -math.inf)
            weights = (lowered == lowered.amax(1, keepdim=True)).to(sims.dtype)
            weights = weights / weights.sum(1, keepdim=True)
        else:
            weights = _softmax(sims, self.weak_temperature, mask)
        if self.mix is not None:
            weights = weights @ self.mix
        return (sims * weights).sum(1)


def _inverse(norms: Tensor) -> Tensor:
    """Invert norms; a token of zeros stays one when it is normalised."""
    return norms.masked_fill(norms == 0, math.inf).reciprocal()


def _softmax(sims: Tensor, temperature: float, mask: Tensor | None) -> Tensor:
    """Compute the softmax of (k, N) over the last axis; uniform if all tokens are masked."""
    lowest = torch.finfo(sims.dtype).min
    highest = (sims if mask is None else sims.masked_fill(~mask, lowest)).amax(1, keepdim=True)
    # Subtracted first: the quotient by a tiny temperature would overflow. It is then 0 for the
    # highest and otherwise at least the lowest number.
    logits = ((sims - highest) / temperature).clamp(min=lowest)
    return (logits if mask is None else logits.masked_fill(~mask, lowest)).softmax(1)
