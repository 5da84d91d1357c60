"""Vectors and features in memory or in mapped files, read where they lie."""

from __future__ import annotations

import sys
import warnings
from array import array
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.rows import HeldRows


def in_place(given: Any) -> Any:
    """Return a tensor on the memory of a numpy array, mapped or not; others as they are."""
    numpy = sys.modules.get("numpy")  # not loaded: then nothing is an array of it
    if numpy is None or not isinstance(given, numpy.ndarray):
        return given
    with warnings.catch_warnings():
        # Of read-only arrays, such as mapped files: nothing here writes into one.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(given)


def as_vectors(name: str, given: Any) -> Tensor:
    """Bring vectors to a tensor (rows, D) without copying them.

    Raises:
        TypeError: They are neither a floating-point tensor nor such an array.
        ValueError: They have another shape, or D is 0.
    """
    vectors = in_place(given)
    if not isinstance(vectors, Tensor) or not vectors.is_floating_point():
        kind = vectors.dtype if isinstance(vectors, Tensor) else type(vectors).__name__
        raise TypeError(f"{name} must be a floating-point tensor or numpy array, got {kind}")
    if vectors.dim() != 2 or vectors.shape[1] == 0:
        raise ValueError(f"{name} must have shape (rows, D), got {tuple(vectors.shape)}")
    return vectors.detach()


def as_ids(ids: Sequence[Hashable] | None, count: int) -> list[Hashable] | None:
    """Bring ids to a list; numbers of arrays and tensors become Python's.

    Raises:
        ValueError: They are not `count`, or repeat.
    """
    if ids is None:
        return None
    listed = ids.tolist() if hasattr(ids, "tolist") else list(ids)
    if len(listed) != count:
        raise ValueError(f"there must be one id for each of {count} rows, got {len(listed)}")
    if len(set(listed)) != count:
        raise ValueError(f"ids must differ, got {count - len(set(listed))} repeated ones")
    return listed


class FeatureRows:
    """Features of items, read in place: `rows[ids]` gives views, and nothing is copied.

    Mapped files are read at the rows that are asked for and nowhere else.

    Args:
        features: (N, ...), a tensor or a numpy array, in memory or mapped, in any dtype; or a
            mapping of names to such.
        ids: N different hashable ids; None: positions from 0.
        lazy: Whether `rows[ids]` is a sequence that makes a view when it is asked for one, and no
            list of views. `EERCF.rerank_candidates` reads it by address and needs no view.

    Raises:
        TypeError: `features` is something else.
        ValueError: The features are of different numbers of items; `ids` are of another number, or
            repeat.
    """

    def __init__(
        self, features: Any, ids: Sequence[Hashable] | None = None, *, lazy: bool = False
    ) -> None:
        named = features if isinstance(features, Mapping) else {"features": features}
        self._arrays = {name: in_place(given) for name, given in named.items()}
        for name, given in self._arrays.items():
            if not isinstance(given, Tensor) or given.dim() == 0:
                raise TypeError(
                    f"{name} must be a tensor or numpy array, got {type(given).__name__}"
                )
        lengths = {name: len(given) for name, given in self._arrays.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"features must be of one number of items, got {lengths}")
        self._lazy = lazy
        self._named = isinstance(features, Mapping)
        self._length = next(iter(lengths.values()))
        listed = as_ids(ids, self._length)
        self._positions = None if listed is None else {key: i for i, key in enumerate(listed)}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, ids: Sequence[Any]) -> Any:
        """Return a list of views, one for each id, or a mapping of names to such lists.

        Raises:
            KeyError: An id is unknown.
        """
        positions = self._positions_of(ids)
        rows: dict[str, Sequence[Tensor]] = {
            name: HeldRows(stored, positions) for name, stored in self._arrays.items()
        }
        if not self._lazy:
            rows = {name: list(lazy) for name, lazy in rows.items()}
        return rows if self._named else rows["features"]

    def _positions_of(self, ids: Sequence[Any]) -> array[int]:
        if self._positions is not None:
            return array("q", [self._positions[key] for key in ids])
        try:
            positions = array("q", list(ids))
        except OverflowError:
            raise KeyError(next(i for i in ids if not 0 <= i < self._length)) from None
        if positions and not 0 <= min(positions) <= max(positions) < self._length:
            raise KeyError(next(i for i in positions if not 0 <= i < self._length))
        return positions
