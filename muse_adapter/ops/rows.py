"""Features of many items, each in a place of its own, and read in groups that fit a cache."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Rows = Tensor | Sequence[Tensor]  # (K, ...), or K tensors of one shape

_GROUP_NUMBERS = 2**19


class RowKind(NamedTuple):
    """What rows of one tensor have in common, as their attributes of the same names say."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device


class HeldRows(Sequence[Tensor]):
    """Rows of one tensor, which is kept, so that nothing has to be asked of each.

    Args:
        array: (N, ...), the tensor.
        positions: Of the rows.
    """

    def __init__(self, array: Tensor, positions: array[int]) -> None:
        self.array, self.positions = array, positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Any) -> Any:
        """Return the view of a row, or fewer rows for a slice."""
        if isinstance(index, slice):
            return HeldRows(self.array, self.positions[index])
        return self.array[self.positions[index]]


def held(name: str, rows: Rows) -> Rows:
    """Return rows that stay what and where they are as long as the result is kept.

    A sequence may make each tensor when it is asked for it, and its address outlives it. Rows say
    that they are those of one tensor by attributes `array` and `positions`, as those of a lazy
    `FeatureRows` do; each is read once, since a property may make another tensor every time.

    Args:
        name: The name that messages use.
        rows: Any rows.

    Returns:
        A tensor, a list, or `HeldRows`.

    Raises:
        ValueError: Positions are not one for each row, or not in the array.
    """
    if isinstance(rows, Tensor) or type(rows) is HeldRows:
        return rows
    if isinstance(rows, list):
        return rows.copy()
    stored, places = getattr(rows, "array", None), getattr(rows, "positions", None)
    if stored is None or places is None:
        return list(rows)
    positions = array("q", places)
    if len(positions) != len(rows):
        raise ValueError(
            f"{name}.positions must be one for each of {len(rows)} rows, got {len(positions)}"
        )
    if positions and not 0 <= min(positions) <= max(positions) < len(stored):
        raise ValueError(f"positions of {name} must lie between 0 and {len(stored) - 1}")
    return HeldRows(stored, positions)


def row_kind(rows: Rows) -> Tensor | RowKind:
    """Return what the rows are like: the first of them, or no view where that can be spared."""
    if not isinstance(rows, HeldRows):
        return rows[0]
    stored = rows.array
    return RowKind(stored.shape[1:], stored.dtype, stored.device)


def row_places(rows: Rows) -> tuple[int, int, array[int]]:
    """Return where rows from `held`, of one shape and type, begin in memory.

    Returns:
        An address, bytes, and K 64-bit integers: a row begins as many times the bytes behind the
        address.
    """
    if isinstance(rows, HeldRows):
        stored, positions = rows.array, rows.positions
    elif isinstance(rows, Tensor):
        stored, positions = rows, array("q", range(len(rows)))
    else:
        return 0, 1, array("q", [row.data_ptr() for row in rows])
    return stored.data_ptr(), stored.stride(0) * stored.element_size(), positions


def leaves(rows: Rows | None) -> Sequence[Tensor]:
    """Return the tensors that the rows are parts of."""
    if rows is None:
        return ()
    if isinstance(rows, Tensor):
        return (rows,)
    return (rows.array,) if isinstance(rows, HeldRows) else rows


def contiguous_rows(rows: Rows) -> bool:
    """Whether each row is contiguous; there may be room between them."""
    tensor = rows.array if isinstance(rows, HeldRows) else rows
    if not isinstance(tensor, Tensor):
        return all(row.is_contiguous() for row in tensor)
    return tensor.is_contiguous() or tensor[0].is_contiguous()


def joined(rows: Rows, part: slice) -> Tensor:
    """Return some of the rows as one tensor (k, ...), without a copy where that is possible."""
    if isinstance(rows, Tensor):
        return rows[part]
    if isinstance(rows, HeldRows):
        return rows.array[list(rows.positions[part])]
    some = rows[part]
    return some[0][None] if len(some) == 1 else torch.stack(list(some))


def groups(rows: Rows) -> Iterator[tuple[slice, Tensor]]:
    """Yield which items a group has, and their features (k, ...)."""
    size = max(1, _GROUP_NUMBERS // max(1, math.prod(row_kind(rows).shape)))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        yield part, joined(rows, part)
