"""The trained methods: what they start from, what learns, and what is left out."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy", reason="the videos are drawn with numpy")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments.compare import TRAINED
from examples.moments.models import ClipModel
from examples.moments.train import batch_of, build_model, train
from muse_adapter.layers.mixers import BiMamba
from tests.support.moments import RUN, random_features

pytestmark = pytest.mark.usefixtures("torch_scan")


@pytest.mark.parametrize(
    "method", [pytest.param(m, marks=pytest.mark.slow) if m == "muse" else m for m in TRAINED]
)
def test_methods_learn(method: str) -> None:
    features, videos = random_features(4)
    model = build_model(replace(RUN, method=method, dropout=0.0), features)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(3):
        torch.manual_seed(0)  # random negatives, and the sentences that are fused
        loss = model.loss(features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    with torch.inference_mode():
        scores = model.score(features)
        assert scores.shape == (len(features.video), len(videos))
        two = features.select(torch.tensor([2, 3]))
        if method != "fused":  # whose shortlists stand above the rest
            rows = (features.video == 2) | (features.video == 3)
            torch.testing.assert_close(model.score(two), scores[rows][:, 2:4], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["gaussian", "mamba", "mamfusion"])
def test_scores_start_as_those_of_the_frozen_clips(method: str) -> None:
    features, _ = random_features()
    scores = build_model(replace(RUN, method=method), features).eval().score(features)
    best = []
    for number in range(len(features.frames)):
        frames = features.frames[number][features.frame_mask[number]]
        edges = [min(round(i * len(frames) / RUN.num_clips), len(frames) - 1) for i in range(9)]
        clips = [frames[a:b].mean(0) for a, b in pairwise(edges)]
        cosines = torch.nn.functional.cosine_similarity(
            features.sentences[:, None], torch.stack(clips), dim=-1
        )
        best.append(cosines.amax(1))
    wanted = torch.stack(best, 1)
    # A query is longer than its frozen part: its scores are smaller, by one factor.
    factor = (scores / wanted).mean(1, keepdim=True)
    assert (factor > 0.9).all() and (factor < 1.001).all()
    torch.testing.assert_close(scores, factor * wanted, rtol=1e-3, atol=1e-4)


def test_layers_are_left_out() -> None:
    features, _ = random_features()

    def count(method: str) -> tuple[int, int]:
        model = build_model(replace(RUN, method=method), features)
        assert isinstance(model, ClipModel)
        branch = model.model.clip_branch
        mixers = [m for m in branch.mamba.modules() if isinstance(m, BiMamba)]
        return len(mixers), sum(p.numel() for p in branch.gaussian.parameters())

    (both, windows), (mamba, none) = count("mamfusion"), count("mamba")
    assert both == mamba == 2 and none == 0
    assert count("gaussian") == (0, windows) and windows > 0


def test_fused_ranking_starts_as_that_of_the_clips() -> None:
    features, _ = random_features()
    fused = build_model(replace(RUN, method="fused"), features).eval()
    clips = build_model(replace(RUN, method="mamfusion"), features).eval()
    ranks = fused.score(features).argsort(1)
    assert (ranks == clips.score(features).argsort(1)).double().mean() > 0.99


def test_sentences_true_of_other_videos_are_no_negatives() -> None:
    features, _ = random_features()
    model = build_model(replace(RUN, dropout=0.0), features)
    everything = torch.ones_like(features.others)
    everything[torch.arange(len(features.video)), features.video] = False
    assert model.loss(replace(features, others=everything)).item() == pytest.approx(0, abs=1e-6)
    none = torch.zeros_like(everything)
    assert model.loss(replace(features, others=none)).item() > 0.1


def test_fewer_videos_than_a_batch_has(tmp_path: Path) -> None:
    features, _ = random_features(2)
    with pytest.raises(ValueError, match="2 training videos, fewer than the 4 of a batch"):
        train(RUN, features, lambda model: {}, tmp_path / "checkpoint.pt", progress=False)


def test_batches_hold_twins_and_every_video_once_an_epoch() -> None:
    steps = [batch_of(step, RUN, 16) for step in range(8)]
    for epoch in (steps[:4], steps[4:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(16))
    for batch in steps:
        assert {video ^ 1 for video in batch.tolist()} == set(batch.tolist())
    assert torch.cat(steps[:4]).tolist() != torch.cat(steps[4:]).tolist()
