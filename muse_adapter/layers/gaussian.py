"""Attention under Gaussian windows of several widths (GMMFormer's block, in MamFusion)."""

from __future__ import annotations

import functools
import itertools

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from muse_adapter.ops.inputs import gradient_wanted
from muse_adapter.ops.torch_private import saved_tensor_hooks_are_off

WIDTHS = (None, 0.5, 1.0, 5.0)

# Scores of one block of windowed attention. On a CPU they stay in the cache; a GPU needs larger
# blocks to be busy.
_CPU_BLOCK = 2**19
_BLOCK = 2**26
_MIN_ROWS = 64  # fewer are slow in matrix products
# Scores beyond which a backward pass recomputes blocks, rather than have all of them kept.
_KEPT = 2**25


def gaussian_window(
    lengths: Tensor,
    size: int,
    width: float,
    *,
    dtype: torch.dtype,
    rows: slice = slice(None),
) -> Tensor:
    """Compute the factors on attention scores, over each sequence's own length.

        g_ij = exp(-(x_j - c_i)^2 / (2 sigma^2)) / max over j of the same
        x_j = j / (length - 1),  c_i = i / length,  sigma = max(width, 0.01) / 9

    The centres slide off the positions by up to 1 / length, as published.

    Args:
        lengths: (B,) valid tokens, standing in front; 0 counts as 1.
        size: L.
        width: Of the window; sigma is a ninth of it, as a fraction of the length.
        dtype: Of the result.
        rows: Centres i to compute; all by default.

    Returns:
        (B, rows, L) in [0, 1], at most 1 in each valid row; behind the length anything finite.
    """
    lengths = lengths.clamp(min=1).to(dtype)[:, None]
    steps = torch.arange(size, device=lengths.device, dtype=dtype)
    keys, centres = steps / (lengths - 1).clamp(min=1), steps / lengths
    sigma = max(width, 0.01) / 9
    exponents = -((keys[:, None] - centres[:, rows, None]) / sigma).square() / 2
    # Valid centres are below 1, the last valid key is at 1: no key behind it is the nearest.
    return (exponents - exponents.amax(-1, keepdim=True)).exp()


class WindowedAttention(nn.Module):
    """BERT's attention layer, with scores that are multiplied by a Gaussian window.

        y = LayerNorm(x + dropout(out(softmax(q k^T / sqrt(D / heads) * window) v)))

    Scores are multiplied, not masked: a far token has logit 0, which is more than a near token has
    with a negative score, as published. The time grows with L^2, the memory with L.

    Args:
        dim: Width D.
        heads: Attention heads; `dim` must be divisible by it.
        width: Of the window, over the valid tokens; None: no window.
        dropout: Rate, on the attention weights and on the output.

    Raises:
        ValueError: `dim` is not divisible by `heads`.
    """

    def __init__(
        self, dim: int, heads: int, *, width: float | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"dim must be divisible by heads, got {dim} and {heads}")
        self.heads = heads
        self.width = width
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        self.out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Apply the layer.

        Args:
            x: (B, L, D).
            keep: Bool (B, L), True for the tokens to attend to, at least one in each row; with a
                window they stand in front. None: all.

        Returns:
            (B, L, D).
        """
        q, k, v = (
            rearrange(linear(x), "b l (h c) -> b h l c", h=self.heads)
            for linear in (self.query, self.key, self.value)
        )
        # Torch's fused attention has no second derivative.
        plain = self.width is None and not gradient_wanted((q, k, v))
        if plain and not (self.training and self.dropout.p):
            mask = None if keep is None else keep[:, None, None]
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        else:
            y = self._in_blocks(q, k, v, keep)
        return self.norm(x + self.dropout(self.out(rearrange(y, "b h l c -> b l (h c)"))))

    def _in_blocks(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        """Attend in blocks of videos and of queries, so that no (B, heads, L, L) tensor is made."""
        videos, heads, size, _ = q.shape
        total = videos * heads * size * size
        with_grad = gradient_wanted((q, k, v))
        scores = _CPU_BLOCK if q.device.type == "cpu" else _BLOCK
        # While a graph is traced, its sizes may be symbolic and must not be branched on. Under
        # `torch.func`'s gradients nothing can be recomputed, so there all scores are kept.
        whole = torch.compiler.is_compiling() or (with_grad and saved_tensor_hooks_are_off())
        if whole or total <= (_KEPT if with_grad else scores):
            return self._attend(q, k, v, keep, slice(None))
        if not with_grad and q.device.type == "cpu" and size * size > scores:
            return self._head_by_head(q, k, v, keep)
        rows = min(size, max(_MIN_ROWS, scores // (heads * size)))
        step = max(1, scores // (heads * size * rows))
        parts = [slice(first, first + step) for first in range(0, videos, step)]
        blocks = [slice(row, row + rows) for row in range(0, size, rows)]

        def inputs(part: slice) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            return q[part], k[part], v[part], None if keep is None else keep[part]

        if with_grad:  # gradients of writes into one tensor would copy all of it for each block
            again = functools.partial(checkpoint, self._attend, use_reentrant=False)
            found = [[again(*inputs(part), block) for block in blocks] for part in parts]
            return torch.cat([torch.cat(outputs, dim=2) for outputs in found])
        y = torch.empty_like(q)  # made first: small results between blocks would split the memory
        for part in parts:
            for block in blocks:
                y[part, :, block] = self._attend(*inputs(part), block)
        return y

    def _head_by_head(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None) -> Tensor:
        """Attend without gradients, in blocks of queries of one head, each in a single buffer.

        Several larger ones for each block would be given back to the system and asked for again,
        which takes longer than what is computed in them.
        """
        videos, heads, size, _ = q.shape
        rows = min(size, max(_MIN_ROWS, _CPU_BLOCK // size))
        y = torch.empty_like(q)
        for video, row in itertools.product(range(videos), range(0, size, rows)):
            block = slice(row, row + rows)
            kept = None if keep is None else keep[video]
            window = self._window(q, None if kept is None else kept[None], block)
            for head in range(heads):
                scores = (q[video, head, block] / q.shape[-1] ** 0.5) @ k[video, head].T
                scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
                if window is not None:
                    scores *= window[0]
                if kept is not None:
                    scores.masked_fill_(~kept, torch.finfo(scores.dtype).min)
                scores.sub_(scores.amax(-1, keepdim=True)).exp_()
                totals = scores.sum(-1, keepdim=True)
                sums = self.dropout(scores).to(v.dtype) @ v[video, head]
                y[video, head, block] = (sums / totals).to(y.dtype)
        return y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, keep: Tensor | None, rows: slice) -> Tensor:
        """Attend from some rows of the queries, (B, heads, L, c) each, to all keys."""
        scores = (q[:, :, rows] / q.shape[-1] ** 0.5) @ k.mT  # (B, heads, rows, L)
        window = self._window(q, keep, rows)
        if window is not None:
            scores = scores * window.to(scores.dtype)[:, None]
        if keep is not None:
            scores = scores.masked_fill(~keep[:, None, None], torch.finfo(scores.dtype).min)
        return self.dropout(scores.softmax(-1)) @ v

    def _window(self, q: Tensor, keep: Tensor | None, rows: slice) -> Tensor | None:
        """Compute the window's factors of some rows, (B or 1, rows, L), in float32 at least."""
        if self.width is None:
            return None
        size = q.shape[2]
        lengths = torch.tensor([size], device=q.device) if keep is None else keep.sum(1)
        dtype = torch.promote_types(q.dtype, torch.float32)
        return gaussian_window(lengths, size, self.width, dtype=dtype, rows=rows)


class GaussianBlock(nn.Module):
    """The mean of four attention layers, under no window and under windows of three widths.

    Args:
        dim: Width D.
        heads: Attention heads.
        dropout: Rate in the layers.
    """

    def __init__(self, dim: int, heads: int, *, dropout: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            WindowedAttention(dim, heads, width=width, dropout=dropout) for width in WIDTHS
        )

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: (B, L, D).
            lengths: (B,) valid tokens, standing in front, at least 1 each; None: all. Windows lie
                over the valid tokens.

        Returns:
            (B, L, D).
        """
        positions = torch.arange(x.shape[1], device=x.device)
        keep = None if lengths is None else positions < lengths[:, None]
        return torch.stack([layer(x, keep) for layer in self.layers]).mean(0)
