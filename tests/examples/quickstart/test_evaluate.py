"""Evaluation: order preferred, videos with several captions."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from examples.quickstart.evaluate import pair_preference
from tests.support.quickstart import split_of


@pytest.mark.parametrize(
    ("similarity", "percent"),
    [
        ([[0.9, 0.1, 0.0], [0.2, 0.3, 0.9], [0.0, 0.0, 0.0]], 100.0),
        ([[0.1, 0.9, 0.0], [0.2, 0.3, 0.9], [0.0, 0.0, 0.0]], 50.0),
        ([[0.5, 0.5, 0.0], [0.3, 0.3, 0.9], [0.0, 0.0, 0.0]], 50.0),
        ([[0.1, 0.9, 0.0], [0.4, 0.3, 0.9], [0.0, 0.0, 0.0]], 0.0),
    ],
    ids=["both", "one", "ties", "none"],
)
def test_pair_preference_by_hand(similarity: list[list[float]], percent: float) -> None:
    split = split_of(("a", "1", "b"), ("b", "2", "a"), ("c", "3", None))
    assert pair_preference(torch.tensor(similarity), split) == percent


def test_pair_preference_without_pairs_is_none() -> None:
    split = split_of(("a", "1", None), ("b", "2", None))
    assert pair_preference(torch.eye(2), split) is None


def test_videos_with_several_captions_stand_once() -> None:
    split = split_of(("a", "1", None), ("b", "2", None), ("c", "1", None))
    assert split.video.tolist() == [0, 1, 0]
    assert [clip.id for clip in split.videos] == ["a", "b"]
    assert split.captions == ["caption of a", "caption of b", "caption of c"]


def test_pair_preference_with_several_captions() -> None:
    """Columns are videos: caption c belongs to the first, whose reversal is the second."""
    split = split_of(("a", "1", "b"), ("b", "2", "a"), ("c", "1", "b"))
    similarity = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.3, 0.3]])
    assert pair_preference(similarity, split) == pytest.approx(50.0)
