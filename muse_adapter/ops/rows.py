"""Features of many items, each in a place of its own, and read in groups that fit a cache."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Rows = Tensor | Sequence[Tensor]  # (K, ...), or K tensors of one shape

_GROUP_NUMBERS = 2**19


class RowKind(NamedTuple):
    """What rows of one tensor have in common, as their attributes of the same names say."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


def source(rows: Rows) -> tuple[Tensor, Sequence[int]] | None:
    """Return the tensor whose rows these are and their positions, where the rows say so.

    They do by attributes `array` and `positions`, as those of a lazy `FeatureRows` do: then nothing
    has to be asked of each.
    """
    if isinstance(rows, (Tensor, list)):
        return None
    tensor, positions = getattr(rows, "array", None), getattr(rows, "positions", None)
    return None if tensor is None or positions is None else (tensor, positions)


def row_kind(rows: Rows) -> Tensor | RowKind:
    """Return what the rows are like: the first of them, or no view where that can be spared."""
    if (found := source(rows)) is None:
        return rows[0]
    tensor = found[0]
    return RowKind(tensor.shape[1:], tensor.dtype, tensor.device)


def row_places(rows: Rows) -> tuple[int, int, array[int]]:
    """Return where rows of one shape and type begin in memory.

    Returns:
        An address, bytes, and K 64-bit integers: a row begins as many times the bytes behind the
        address.
    """
    tensor: Rows = rows
    positions: Sequence[int] = range(len(rows))
    if (found := source(rows)) is not None:
        tensor, positions = found
    if not isinstance(tensor, Tensor):
        return 0, 1, array("q", [row.data_ptr() for row in rows])
    step = tensor.stride(0) * tensor.element_size()
    return tensor.data_ptr(), step, array("q", positions)


def leaves(rows: Rows | None) -> Sequence[Tensor]:
    """Return the tensors that the rows are parts of."""
    if rows is None:
        return ()
    if isinstance(rows, Tensor):
        return (rows,)
    return rows if (found := source(rows)) is None else found[:1]


def contiguous_rows(rows: Rows) -> bool:
    """Whether each row is contiguous; there may be room between them."""
    tensor = rows if (found := source(rows)) is None else found[0]
    if not isinstance(tensor, Tensor):
        return all(row.is_contiguous() for row in tensor)
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def held(rows: Rows) -> Rows:
    """Return rows that stay where they are as long as the result is kept.

    A sequence may make each tensor when it is asked for it, and its address outlives it.
    """
    return rows if isinstance(rows, Tensor) or source(rows) is not None else list(rows)


def joined(rows: Rows, part: slice) -> Tensor:
    """Return some of the rows as one tensor (k, ...), without a copy where that is possible."""
    if isinstance(rows, Tensor):
        return rows[part]
    if (found := source(rows)) is not None:
        return found[0][list(found[1][part])]
    some = rows[part]
    return some[0][None] if len(some) == 1 else torch.stack(list(some))


def groups(rows: Rows) -> Iterator[tuple[slice, Tensor]]:
    """Yield which items a group has, and their features (k, ...)."""
    size = max(1, _GROUP_NUMBERS // max(1, math.prod(row_kind(rows).shape)))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield part, joined(rows, part)
