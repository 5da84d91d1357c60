"""The contents of long videos, their truth, and the pictures drawn of them."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numpy", reason="the videos are drawn with numpy")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments.corpus import draw
from examples.moments.features import true_of_others
from examples.moments.moments import (
    ORDERED,
    STATIC,
    Moment,
    all_moments,
    sample_videos,
    split_moments,
)
from examples.quickstart.captions import SPLITS
from examples.quickstart.scenes import Thing

RED, GREEN = Thing("small", "red", "circle"), Thing("small", "green", "square")
BLUE = Thing("large", "blue", "square")


def test_sentences() -> None:
    assert Moment((RED,), "above", BLUE).sentence == "a small red circle above a large blue square"
    moment = Moment((RED, GREEN), "above", BLUE)
    assert moment.sentence == (
        "a small red circle and then a small green square above a large blue square"
    )
    assert moment.swapped().sentence == (
        "a small green square and then a small red circle above a large blue square"
    )
    assert moment.swapped().swapped() == moment


def test_no_sentence_is_in_two_splits() -> None:
    splits = split_moments()
    sentences = {
        name: {m.sentence for kind in kinds for one in kind for m in (one, one.swapped())}
        for name, kinds in splits.items()
    }
    for one in SPLITS:
        for other in SPLITS:
            assert one == other or not sentences[one] & sentences[other]
    everything = {
        m.sentence for kind in all_moments() for one in kind for m in (one, one.swapped())
    }
    assert set().union(*sentences.values()) == everything
    for name in SPLITS:
        used = {m.sentence for video in sample_videos(name, 8, seed=3) for m in video.moments}
        assert used <= sentences[name]


def test_every_ordered_moment_has_its_swap_in_the_twin() -> None:
    videos = sample_videos("test", 200, seed=0)
    by_id = {video.id: video for video in videos}
    ordered, by_chance = [], 0
    for video in videos:
        assert len(video.moments) == ORDERED + STATIC
        for moment in video.moments:
            assert moment.ordered or video.states.count(moment.states[0]) == 1
        twin = by_id[video.twin]
        assert twin.twin == video.id
        for moment in video.moments:
            if moment.ordered:
                ordered.append(moment)
                assert moment.swapped() in twin.moments
                by_chance += twin.shows(moment)  # across the border of two moments
    assert len(set(ordered)) == len(ordered)  # each is asked for once
    assert by_chance <= 0.01 * len(ordered)


def test_truth_is_looked_up_for_all_pairs() -> None:
    videos = sample_videos("train", 40, seed=1)
    found = true_of_others(videos)
    moments = [(number, moment) for number, video in enumerate(videos) for moment in video.moments]
    wanted = [
        [video.shows(moment) and number != own for number, video in enumerate(videos)]
        for own, moment in moments
    ]
    assert found.tolist() == wanted
    assert found.any()


def test_halves_of_an_ordered_moment_are_true_as_static_ones() -> None:
    video = next(iter(sample_videos("train", 2, seed=0)))
    for moment in video.moments:
        for thing in moment.small:
            assert video.shows(Moment((thing,), moment.relation, moment.large))


@pytest.mark.parametrize(
    ("split", "count", "message"),
    [
        ("train", 3, "must be an even number of at least 2 videos, got 3"),
        ("test", 0, "must be an even number of at least 2 videos, got 0"),
        ("test", 1000, "test can have at most 206 videos, got 1000"),
    ],
)
def test_sizes_that_cannot_be(split: str, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sample_videos(split, count, seed=0)


def test_things_change_at_the_cut_alone() -> None:
    video = sample_videos("train", 2, seed=0)[0]
    frames = draw(video).astype(float)
    assert len(frames) == video.num_frames == video.spans[-1][1] + 1
    steps = np.abs(np.diff(frames, axis=0)).mean(axis=(1, 2, 3))  # between neighbours
    borders = {first for first, _ in video.spans[1:]}
    cuts = {
        first + cut
        for moment, (first, _), cut in zip(video.moments, video.spans, video.cuts, strict=True)
        if moment.ordered
    }
    inside = [step for i, step in enumerate(steps, start=1) if i not in borders | cuts]
    assert min(steps[i - 1] for i in borders) > max(inside)
    assert all(
        moment.small[0].colour == moment.small[1].colour
        or steps[first + cut - 1] > np.median(inside)
        for moment, (first, _), cut in zip(video.moments, video.spans, video.cuts, strict=True)
        if moment.ordered
    )
