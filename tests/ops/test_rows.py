"""Rows of one array: they are read by position, and nothing is asked of each."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_adapter.ops import text_gated_scores
from muse_adapter.ops.rows import HeldRows, held
from tests.support.rows import ConvertedRows, MadeWhenAsked

BACKENDS = pytest.mark.parametrize("backend", ["torch", "numba"])


@pytest.mark.parametrize(
    ("array", "positions", "message"),
    [
        (torch.zeros(3, 7, 16), [0, 10**9], "positions of keys must lie between 0 and 2"),
        (torch.zeros(3, 7, 16), [-1, 2], "positions of keys must lie between 0 and 2"),
        (torch.zeros(3, 7, 16), [2], "positions must be one for each of 2 rows, got 1"),
    ],
)
def test_rows_that_are_not_those_of_their_array(
    array: Tensor, positions: list[int], message: str
) -> None:
    rows = MadeWhenAsked(torch.zeros(2, 7, 16))
    rows.array, rows.positions = array, positions  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=message):
        text_gated_scores(rows, None, torch.zeros(16))


@BACKENDS
@pytest.mark.parametrize("converted", [False, True], ids=["an array", "converted"])
def test_rows_by_position(backend: str, converted: bool) -> None:
    """An array that is made anew for everybody who asks is asked for once."""
    if backend == "numba":
        pytest.importorskip("numba", reason="needs muse-adapter[cpu]")
    stored, text = torch.randn(5, 7, 16), torch.randn(16)
    some = stored.half()[[4, 0, 4]]
    rows: MadeWhenAsked
    if converted:
        rows = ConvertedRows(stored, (4, 0, 4))
    else:
        rows = MadeWhenAsked(torch.zeros(3, 9))
        rows.array, rows.positions = stored.half(), (4, 0, 4)  # type: ignore[attr-defined]
    got = text_gated_scores(rows, some, text, backend=backend)
    expected = text_gated_scores(some, rows, text, backend=backend)
    plain = text_gated_scores(some, some, text, backend=backend)
    for ours, theirs, exact in zip(got, expected, plain, strict=True):
        assert torch.equal(ours, exact)
        assert torch.equal(theirs, exact)
    if isinstance(rows, ConvertedRows):
        assert rows.asked == 2  # once a call


def test_held_rows_stay_what_they_are() -> None:
    stored, positions = torch.randn(5, 7, 16), [4, 0, 4]
    kept = held("keys", ConvertedRows(stored, positions))
    assert isinstance(kept, HeldRows) and held("keys", kept) is kept
    positions[0] = 10**9
    assert torch.equal(torch.stack(list(kept)), stored.half()[[4, 0, 4]])
    assert torch.equal(torch.stack(list(kept[1:])), stored.half()[[0, 4]])
