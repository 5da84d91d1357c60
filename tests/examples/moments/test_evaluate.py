"""Recalls without the further true videos, order, and places in time."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("numpy", reason="the videos are drawn with numpy")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments.evaluate import evaluate
from examples.moments.localise import grow, localisation, overlap, splice, window_moments
from examples.moments.untrained import STRIDE, WINDOWS, max_over_frames, sliding_windows
from tests.support.moments import random_features


def test_perfect_scores_and_their_opposite() -> None:
    features, videos = random_features()
    own = torch.nn.functional.one_hot(features.video, len(videos)).float()
    perfect = evaluate(own, features.others, videos)
    assert perfect["all"] == {"R@1": 100, "R@5": 100, "R@10": 100, "R@100": 100, "SumR": 400}
    assert perfect["order_right"] == 100
    worst = evaluate(-own, torch.zeros_like(features.others), videos)
    assert worst["all"]["R@1"] == worst["static"]["R@1"] == worst["ordered"]["R@1"] == 0
    assert worst["order_right"] == 0
    blind = evaluate(torch.zeros_like(own), features.others, videos)
    assert blind["order_right"] == 50


def test_further_true_videos_are_no_wrong_answers() -> None:
    features, videos = random_features()
    others = torch.zeros_like(features.others)
    scores = torch.nn.functional.one_hot(features.video, len(videos)).float()
    wrong = (int(features.video[0]) + 1) % len(videos)
    scores[0, wrong] = 2
    before = evaluate(scores, others, videos)["all"]["R@1"]
    others[0, wrong] = True
    after = evaluate(scores, others, videos)["all"]["R@1"]
    assert before == pytest.approx(100 * (1 - 1 / len(scores))) and after == 100


def test_order_counts_the_twin_alone() -> None:
    features, videos = random_features(4)
    number = {video.id: n for n, video in enumerate(videos)}
    twin = torch.tensor([number[video.twin] for video in videos])[features.video]
    scores = torch.nn.functional.one_hot(features.video, 4).float()
    scores += 2 * torch.nn.functional.one_hot(twin, 4)
    assert evaluate(scores, features.others, videos)["order_right"] == 0


def test_untrained_methods_agree_with_their_definition() -> None:
    features, videos = random_features(4)
    frames = torch.nn.functional.normalize(features.frames, dim=-1)
    texts = torch.nn.functional.normalize(features.sentences, dim=-1)
    by_frame, by_window = max_over_frames(features), sliding_windows(features, (8, 16))
    for number, video in enumerate(videos):
        own = frames[number, : video.num_frames]
        torch.testing.assert_close(by_frame[:, number], (texts @ own.T).amax(1))
        means = [
            own[start : start + length].mean(0)
            for length in (8, 16)
            for start in range(0, len(own) - length + 1, STRIDE)
        ]
        windows = torch.nn.functional.normalize(torch.stack(means), dim=-1)
        torch.testing.assert_close(by_window[:, number], (texts @ windows.T).amax(1))


def test_best_clip_grows_to_its_like() -> None:
    spans = torch.tensor([[0, 3], [4, 7], [8, 11], [12, 15], [16, 19]])
    assert grow(torch.tensor([0.0, 0.8, 1.0, 0.1, 0.9]), spans) == (4, 11)
    assert grow(torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0]), spans) == (0, 3)


@pytest.mark.parametrize(
    ("one", "other", "wanted"),
    [((0, 9), (0, 9), 1.0), ((0, 9), (5, 14), 1 / 3), ((0, 4), (5, 9), 0.0), ((3, 3), (0, 9), 0.1)],
)
def test_overlap(one: tuple[int, int], other: tuple[int, int], wanted: float) -> None:
    assert overlap(one, other) == pytest.approx(wanted)
    assert overlap(other, one) == pytest.approx(wanted)


def test_spliced_videos_hold_a_moment_and_its_swap() -> None:
    features, videos = random_features(4)
    spliced, spans = splice(features, videos)
    moments = [(video, moment) for video in videos for moment in video.moments]
    ordered = [row for row, (_, moment) in enumerate(moments) if moment.ordered]
    assert len(spliced.frames) == len(spans) == len(ordered)
    number = {video.id: n for n, video in enumerate(videos)}
    for new, row in enumerate(ordered):
        torch.testing.assert_close(spliced.words[new], features.words[row])
        video, moment = moments[row]
        first, last = spans[new]
        a, b = video.spans[video.moments.index(moment)]
        torch.testing.assert_close(
            spliced.frames[new, first : last + 1], features.frames[number[video.id], a : b + 1]
        )
        twin = videos[number[video.twin]]
        a, b = twin.spans[twin.moments.index(moment.swapped())]
        swapped = features.frames[number[twin.id], a : b + 1]
        frames = spliced.frames[new][spliced.frame_mask[new]]
        windows = frames.unfold(0, len(swapped), 1).transpose(1, 2)
        assert (windows == swapped).all(-1).all(-1).sum() == 1


def test_localisation_counts_overlaps() -> None:
    features, videos = random_features(4)
    wanted = splice(features, videos)[1]
    assert localisation(lambda _: wanted, features, videos) == 100
    assert localisation(lambda _: [(0, 0)] * len(wanted), features, videos) == 0
    found = window_moments(splice(features, videos)[0])
    assert all(last - first + 1 in WINDOWS for first, last in found)
