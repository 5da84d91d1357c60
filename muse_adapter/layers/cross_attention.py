"""Attention from one sequence to another, added to the first."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class CrossAttention(nn.Module):
    """Pre-norm attention to another sequence: x + out(heads(LN(x), LN(memory))).

    Args:
        dim: Width D of the sequence.
        memory_dim: Width M of the sequence that is attended to.
        inner: Width of all heads together; `heads` must divide it.
        heads: Attention heads.
    """

    def __init__(self, dim: int, memory_dim: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(dim)
        self.memory_norm = nn.LayerNorm(memory_dim)
        self.query = nn.Linear(dim, inner)
        self.key = nn.Linear(memory_dim, inner)
        self.value = nn.Linear(memory_dim, inner)
        self.out = nn.Linear(inner, dim)

    def forward(self, x: Tensor, memory: Tensor, keep: Tensor | None = None) -> Tensor:
        """Apply the layer; leading axes are broadcast, after the linear maps of the inputs.

        Args:
            x: (..., L, D).
            memory: (..., N, M).
            keep: Bool (..., N), True for what to attend to, at least one in each row; None: all.

        Returns:
            (..., L, D).
        """
        memory = self.memory_norm(memory)
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(-2, -3)  # (..., heads, tokens, channels)
            for t in (self.query(self.norm(x)), self.key(memory), self.value(memory))
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if keep is not None:
            scores = scores.masked_fill(~keep[..., None, None, :], torch.finfo(scores.dtype).min)
        y = (scores.softmax(-1) @ v).transpose(-2, -3).flatten(-2)
        return x + self.out(y)

    @torch.no_grad()
    def zero_init_output(self) -> None:
        """Set the last linear map to zero, so that the layer starts as the identity."""
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)
