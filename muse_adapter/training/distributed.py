"""Rows of all processes, with gradients that go back to the process they came from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed


def gather_rows(rows: Tensor) -> Tensor:
    """Joins the rows of all ranks of the default process group, in the order of the ranks.

    Every rank must call it. The gradient of a row is the sum over the ranks of its gradients there.

    Args:
        rows: (b, D); b may differ between ranks, D and the type may not.

    Returns:
        (b_0 + b_1 + ..., D); `rows` itself where there is one process.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        return rows
    return rows if distributed.get_world_size() == 1 else _GatherRows.apply(rows)


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        count = torch.tensor([len(rows)], device=rows.device)
        each = [torch.empty_like(count) for _ in range(distributed.get_world_size())]
        distributed.all_gather(each, count)
        counts = torch.cat(each).tolist()
        # all_gather takes tensors of one shape, so shorter ones are filled up.
        filled = rows.new_zeros(max(counts), *rows.shape[1:])
        filled[: len(rows)] = rows
        parts = [torch.empty_like(filled) for _ in counts]
        distributed.all_gather(parts, filled)
        ctx.start, ctx.count = sum(counts[: distributed.get_rank()]), len(rows)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        distributed.all_reduce(gradient)
        return gradient[ctx.start : ctx.start + ctx.count]
