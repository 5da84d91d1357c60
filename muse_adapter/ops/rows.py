"""Features of many items, each in a place of its own, and read in groups that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Rows = Tensor | Sequence[Tensor]  # (K, ...), or K tensors of one shape

_GROUP_NUMBERS = 2**19


def joined(rows: Rows) -> Tensor:
    """Return one tensor (K, ...), without a copy where that is possible."""
    if isinstance(rows, Tensor):
        return rows
    return rows[0][None] if len(rows) == 1 else torch.stack(list(rows))


def groups(rows: Rows) -> Iterator[tuple[slice, Tensor]]:
    """Yield which items a group has, and their features (k, ...)."""
    size = max(1, _GROUP_NUMBERS // max(1, rows[0].numel()))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield part, joined(rows[part])
