"""Rows that are made when somebody asks for them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


class MadeWhenAsked(Sequence[Tensor]):
    """Tensors that nobody else holds."""

    def __init__(self, array: Tensor) -> None:
        self.of = array

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.of[index].clone()


class ConvertedRows(MadeWhenAsked):
    """Rows of an array that is converted each time somebody asks for it."""

    def __init__(self, array: Tensor, positions: Sequence[int]) -> None:
        super().__init__(array)
        self.positions, self.asked = positions, 0

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def array(self) -> Tensor:
        self.asked += 1
        return self.of.half()
