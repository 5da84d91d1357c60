"""Features of many items, each in a place of its own, and read in groups that fit a cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

Rows = Tensor | Sequence[Tensor]  # (K, ...), or K tensors of one shape

_GROUP_NUMBERS = 2**19


def source(rows: Rows) -> tuple[Tensor, Sequence[int]] | None:
    """Return the tensor whose rows these are and their positions, where the rows say so.

    They do by attributes `array` and `positions`, as those of a lazy `FeatureRows` do: then nothing
    has to be asked of each.
    """
    array = getattr(rows, "array", None)
    return None if array is None else (array, rows.positions)  # type: ignore[union-attr]


def row_addresses(rows: Rows) -> Tensor:
    """Return where rows of one shape and type begin in memory, (K,) int64."""
    if isinstance(rows, Tensor):
        array, positions = rows, torch.arange(len(rows))
    elif (found := source(rows)) is not None:
        array, positions = found[0], torch.tensor(found[1])
    else:
        return torch.tensor([row.data_ptr() for row in rows])
    return array.data_ptr() + positions * (array.stride(0) * array.element_size())


def leaves(rows: Rows | None) -> Sequence[Tensor]:
    """Return the tensors that the rows are parts of."""
    if rows is None:
        return ()
    if isinstance(rows, Tensor):
        return (rows,)
    return rows if (found := source(rows)) is None else found[:1]


def contiguous_rows(rows: Rows) -> bool:
    """Whether each row is contiguous, while there may be room between them."""
    if isinstance(rows, Tensor) or source(rows) is not None:
        return rows[0].is_contiguous()
    return all(row.is_contiguous() for row in rows)


def held(rows: Rows) -> Rows:
    """Return rows that stay where they are as long as the result is kept.

    A sequence may make each tensor when it is asked for it, and its address outlives it.
    """
    return rows if isinstance(rows, Tensor) or source(rows) is not None else list(rows)


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
