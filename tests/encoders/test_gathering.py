"""What is joined over all ranks; two processes are in `tests/training/test_distributed.py`."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.encoders.gathering import gather_features, gather_targets


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ([0, 3], "targets must be from 0 to 2, got 3"),
        ([-1, 0], "targets must be from 0 to 2, got -1"),
        ([0, 1, 2], r"targets must have shape \(2,\), got \(3,\)"),
    ],
    ids=["above", "below", "number"],
)
def test_targets_are_those_of_the_own_rank(targets: list[int], message: str) -> None:
    """Joined, the number of a video that this rank does not have would be one of another rank."""
    with pytest.raises(ValueError, match=message):
        gather_targets(torch.tensor(targets), 2, 3)


def test_a_rank_without_pairs() -> None:
    joined = gather_features([torch.zeros(0, 4), torch.zeros(0, 2, 3)], torch.float32)
    assert [tuple(part.shape) for part in joined] == [(0, 4), (0, 2, 3)]
