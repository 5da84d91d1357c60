"""Embeddings of all processes, with gradients for the process that each row came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def gather_rows(rows: Tensor) -> Tensor:
    """Concatenate the rows of all ranks of the default process group, in the order of the ranks.

    Every rank must call it. The gradient of a row is the sum of its gradients on all ranks.

    Args:
        rows: (b, D); b may differ between ranks, D and the dtype may not.

    Returns:
        (b_0 + b_1 + ..., D); `rows` itself if there is only one process.
    """
    return _GatherRows.apply(rows) if _initialized() and distributed.get_world_size() > 1 else rows


def rank() -> int:
    """Return the rank of this process in the default process group; 0 if there is none."""
    return distributed.get_rank() if _initialized() else 0


def _initialized() -> bool:
    return distributed.is_available() and distributed.is_initialized()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        count = torch.tensor([len(rows)], device=rows.device)
        gathered = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
        distributed.all_gather(gathered, count)
        counts = torch.cat(gathered).tolist()
        # all_gather takes tensors of one shape, so shorter ones are padded.
        padded = rows.new_zeros(max(counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        parts = [torch.empty_like(padded) for _ in counts]
        distributed.all_gather(parts, padded)
        ctx.start, ctx.count = sum(counts[: distributed.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]
