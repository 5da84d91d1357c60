"""Definitions of token scores in loops and full tensors, to compare the fast forms with."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import normalize

A, B, N, D = 6, 5, 4, 7
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0]])


def leaves(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Draw tensors with gradients, the same for every dtype."""
    drawn = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    return [tensor.to(dtype).requires_grad_() for tensor in drawn]


def gated(text: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, tau: float) -> Tensor:
    """Compute EERCF's gated cosines (A, B), pair by pair, from valid tokens alone."""
    rows = []
    for t in normalize(text, dim=-1):
        row = []
        for b in range(len(keys)):
            valid = slice(None) if mask is None else mask[b].bool()
            key, value = normalize(keys[b][valid], dim=-1), normalize(values[b][valid], dim=-1)
            if not len(key):
                row.append(t.sum() * 0)
                continue
            pooled = (key @ t / tau).softmax(0) @ value
            row.append(t @ pooled / pooled.norm())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def weighted(
    text: Tensor, tokens: Tensor, mask: Tensor | None, tau: float, mix: Tensor | None = None
) -> Tensor:
    """Compute token similarities (A, B), pair by pair."""
    rows = []
    for t in normalize(text, dim=-1):
        row = []
        for b in range(len(tokens)):
            valid = torch.ones(tokens.shape[1]).bool() if mask is None else mask[b].bool()
            sims = normalize(tokens[b][valid], dim=-1) @ t
            if not len(sims):
                row.append(t.sum() * 0)
                continue
            if tau == 0:
                weights = torch.zeros_like(sims).index_fill(0, sims.argmax(), 1)
            elif tau == math.inf:
                weights = torch.full_like(sims, 1 / len(sims))
            else:
                weights = (sims / tau).softmax(0)
            row.append(sims @ (weights if mix is None else weights @ mix[valid][:, valid]))
        rows.append(torch.stack(row))
    return torch.stack(rows)


def max_similarity(
    words: Tensor, tokens: Tensor, word_mask: Tensor | None, mask: Tensor | None, reduce: str
) -> Tensor:
    """Compute MaxSim (A, B), pair by pair."""
    rows = []
    for a in range(len(words)):
        row = []
        for b in range(len(tokens)):
            word = words[a] if word_mask is None else words[a][word_mask[a].bool()]
            token = tokens[b] if mask is None else tokens[b][mask[b].bool()]
            sims = normalize(word, dim=-1) @ normalize(token, dim=-1).T
            if not sims.numel():
                row.append(words[a].sum() * 0)
                continue
            best = sims.amax(1)
            row.append(best.mean() if reduce == "mean" else best.sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)
