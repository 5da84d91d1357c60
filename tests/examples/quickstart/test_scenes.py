"""Scenes and their drawing: grammar, reversals, and what the pixels show."""

from __future__ import annotations

from collections import Counter

import pytest

pytest.importorskip("numpy", reason="rendering clips needs numpy")
pytest.importorskip("tqdm", reason="the quickstart needs tqdm")

import numpy as np

from examples.quickstart.drawing import SIDE, draw_scene
from examples.quickstart.scenes import (
    COUPLES,
    DIRECTIONS,
    OPPOSITE,
    QUERY,
    RELATIONS,
    TWO_STEPS,
    Scene,
    Thing,
    parse_caption,
    sample_pairs,
)

RED, BLUE = Thing("small", "red", "circle"), Thing("large", "blue", "square")


@pytest.mark.parametrize(
    ("scene", "caption", "turned"),
    [
        pytest.param(
            Scene(RED, ("left",), "above", BLUE),
            "a small red circle moves left above a large blue square",
            "a small red circle moves right above a large blue square",
            id="one_step",
        ),
        pytest.param(
            Scene(RED, ("left", "up"), "below", BLUE),
            "a small red circle moves left and then up below a large blue square",
            "a small red circle moves down and then right below a large blue square",
            id="two_steps",
        ),
        pytest.param(
            Scene(RED, ("up",), "below", BLUE, bystander=Thing("small", "green", "circle")),
            "a small red circle moves up below a large blue square "
            "while a small green circle stands still",
            "a small red circle moves down below a large blue square "
            "while a small green circle stands still",
            id="bystander",
        ),
    ],
)
def test_captions_and_their_reversals(scene: Scene, caption: str, turned: str) -> None:
    assert scene.caption == caption
    assert scene.reversed().caption == turned
    assert scene.reversed().reversed() == scene


def test_the_query_of_the_readme_is_of_the_grammar() -> None:
    assert parse_caption(QUERY) == Scene(RED, ("left",), "above", BLUE)
    assert parse_caption(QUERY).caption == QUERY


def test_a_bystander_makes_no_other_meaning() -> None:
    with_it = Scene(RED, ("left",), "above", BLUE, bystander=Thing("small", "green", "circle"))
    assert with_it.meaning() == Scene(RED, ("left",), "above", BLUE).meaning()
    assert with_it.meaning() != with_it.reversed().meaning()


def test_sampled_scenes_differ_in_meaning_and_balance_the_directions() -> None:
    taken: set = set()
    pairs = sample_pairs(150, np.random.default_rng(0), taken)
    scenes = [scene for pair in pairs for scene in pair]
    assert len({scene.meaning() for scene in scenes}) == len(taken) == len(scenes) == 300
    steps = Counter(step for scene in scenes for step in scene.motion)
    assert all(steps[step] == steps[OPPOSITE[step]] for step in DIRECTIONS)
    assert min(steps.values()) > 0.2 * sum(steps.values())
    assert min(Counter(scene.relation for scene in scenes).values()) > 0.2 * len(scenes)
    assert all(scene.bystander is None or scene.bystander.size == "small" for scene in scenes)
    colours = [[thing.colour for thing in scene.things] for scene in scenes]
    assert all(len(set(of_scene)) == len(of_scene) for of_scene in colours)


def test_training_scenes_may_repeat_each_other_but_nothing_that_is_taken() -> None:
    taken: set = set()
    held_out = sample_pairs(100, np.random.default_rng(0), taken)
    before = set(taken)
    pairs = sample_pairs(2000, np.random.default_rng(1), taken, repeat=True)
    meanings = [scene.meaning() for pair in pairs for scene in pair]
    assert taken == before and not before & set(meanings)
    assert len(set(meanings)) < len(meanings) == 4000 and len(held_out) == 100


def test_a_scene_that_is_taken_is_refused_as_the_first() -> None:
    scene = Scene(RED, ("left",), "above", BLUE)
    with pytest.raises(ValueError, match="taken: a small red circle moves left above"):
        sample_pairs(2, np.random.default_rng(0), {scene.meaning()}, first=scene)


def test_more_scenes_than_there_are_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"found \d+ of 1300 pairs; there are hardly any more"):
        sample_pairs(1300, np.random.default_rng(0), set())  # 108 couples, 2 relations, 6 pairs


def test_couples_can_be_told_apart() -> None:
    assert (RED, BLUE) in COUPLES
    assert len(COUPLES) == len(set(COUPLES)) == 12 * 9
    assert all(one.colour != other.colour for one, other in COUPLES)
    assert {(one.size, other.size) for one, other in COUPLES} == {("small", "large")}


def centre_of(frame: np.ndarray, channel: int) -> tuple[float, float, float]:
    """Centre (x, y) and width of what stands out in one colour channel."""
    picture = frame.astype(int)
    others = np.delete(picture, channel, axis=-1).max(axis=-1)
    rows, columns = np.nonzero(picture[..., channel] - others > 60)
    return float(columns.mean()), float(rows.mean()), float(np.ptp(columns)) + 1


@pytest.mark.parametrize("relation", RELATIONS)
def test_a_clip_shows_what_its_caption_says(relation: str) -> None:
    """Measured in the pixels: relation in every frame, direction of every step, sizes."""
    for number, motion in enumerate([*((step,) for step in DIRECTIONS), *TWO_STEPS]):
        mover = Thing("small", "red", ("circle", "square", "triangle")[number % 3])
        other = Thing("large", "blue", ("circle", "square", "triangle")[number % 2])
        scene = Scene(mover, motion, relation, other)
        video = draw_scene(scene, np.random.default_rng([7, number]))
        assert video.dtype == np.uint8 and video.shape[1:] == (SIDE, SIDE, 3)
        assert 5 <= len(video) <= 24
        red = np.array([centre_of(frame, 0) for frame in video])
        blue = np.array([centre_of(frame, 2) for frame in video])

        sign = 1 if relation == "above" else -1
        assert (sign * (blue - red)[:, 1] > 8).all(), scene.caption
        assert np.abs(blue[:, :2] - blue[0, :2]).max() < 0.5, scene.caption
        moved = red[-1, :2] - red[0, :2]
        expected = np.zeros(2)
        for step in motion:
            expected += {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[step]
        assert (np.sign(np.where(np.abs(moved) < 3, 0, moved)) == expected).all(), scene.caption
        assert (np.abs(moved[expected != 0]) > 5).all(), scene.caption
        if len(motion) == 2:  # a third of the way the first step is under way, the second is not
            early = np.abs(red[max(1, len(video) // 3), :2] - red[0, :2])
            along = 0 if motion[0] in ("left", "right") else 1
            assert early[along] > 3 > early[1 - along], scene.caption
        assert 9 < red[:, 2].max() < 15 < blue[:, 2].min() < 23, scene.caption


def test_lengths_vary_and_some_clips_are_short() -> None:
    lengths = [
        len(draw_scene(Scene(RED, ("left",), "above", BLUE), np.random.default_rng(i)))
        for i in range(80)
    ]
    assert 0.05 < np.mean(np.array(lengths) < 8) < 0.3
    assert len(set(lengths)) > 12 and min(lengths) >= 5 and max(lengths) <= 24


def test_clips_of_one_caption_differ() -> None:
    scene = Scene(RED, ("left",), "above", BLUE)
    videos = [draw_scene(scene, np.random.default_rng(i)) for i in (1, 2, 1)]
    assert np.array_equal(videos[0], videos[2])
    assert not np.array_equal(videos[0][0], videos[1][0])
