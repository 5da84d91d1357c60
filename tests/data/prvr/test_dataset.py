"""The data set, its batches and its evaluation, with features in memory and of cached tokens."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from muse_adapter import MamFusion, VideoCode, cache_tokens
from muse_adapter.data import (
    CachedFrames,
    CachedTokens,
    Caption,
    PrvrDataset,
    PrvrVideo,
    collate_prvr,
    evaluate_prvr,
)
from muse_adapter.layers.segments import segment_means
from tests.support.cached_tokens import COUNT, MASKS, Videos, frozen_encoder
from tests.support.prvr_files import CAPTIONS, caption_ids, frame_features, word_features

pytestmark = pytest.mark.usefixtures("torch_scan")

TRAIN = [
    Caption(name, video, text)
    for name, (video, text) in zip(caption_ids("train"), CAPTIONS["train"], strict=True)
]


def dataset(**options: object) -> PrvrDataset:
    return PrvrDataset(TRAIN, frame_features(), word_features(), **options)


def test_a_video_with_all_its_captions() -> None:
    data = dataset()
    assert len(data) == 2 and data.videos == ["v_c", "v_a"]
    assert [[caption.text for caption in captions] for captions in data.captions] == [
        ["a man runs", "he falls"],
        ["it rains"],
    ]
    video = data[0]
    assert torch.equal(video.frames, frame_features()["v_c"])
    words = [word_features()[name] for name in ("v_c#enc#0", "v_c#enc#2")]
    assert len(video.words) == 2 and all(map(torch.equal, video.words, words))
    assert video.sentences == []


def test_batches() -> None:
    data = dataset()
    batch = collate_prvr([data[0], data[1]])
    assert batch.frames.shape == (2, 9, 6) and batch.words.shape == (3, 4, 4)
    assert batch.frame_mask.sum(1).tolist() == [9, 5]
    assert batch.word_mask.sum(1).tolist() == [4, 3, 3]
    assert batch.labels.tolist() == [0, 0, 1] and batch.sentence is None
    assert not batch.frames[~batch.frame_mask].any() and not batch.words[~batch.word_mask].any()
    assert torch.equal(batch.frames[1, :5], data[1].frames)
    assert torch.equal(batch.words[2, :3], data[1].words[0])


def test_long_videos_are_averaged_as_published() -> None:
    frames = frame_features()["v_c"]
    data = dataset(max_frames=4)
    assert torch.equal(data[0].frames, segment_means(frames[None], torch.tensor([9]), 4)[0])
    # The published loader cuts 9 frames at 0, 2, 4, 7 and 8: round(9 i / 4), at most 8.
    edges = [0, 2, 4, 7, 8]
    means = [frames[a:b].mean(0) for a, b in itertools.pairwise(edges)]
    torch.testing.assert_close(data[0].frames, torch.stack(means))
    assert torch.equal(dataset(max_frames=9)[0].frames, frames)


def test_batches_are_what_mamfusion_takes() -> None:
    sentences = {name: words.mean(0) for name, words in word_features().items()}
    frames = {name: value[:, :4] for name, value in frame_features().items()}
    data = PrvrDataset(TRAIN, frames, word_features(), sentences=sentences)
    model = MamFusion(visual_width=4, text_width=4, hidden=8, heads=2, num_clips=4, max_frames=6,
                      residual="concat")  # fmt: skip
    batch = collate_prvr(list(data))
    assert batch.sentence is not None and batch.sentence.shape == (3, 4)
    model.loss(**batch._asdict()).total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


class Scorer(nn.Module):
    """A model whose queries and clips are the features themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []

    def encode_text(self, words, word_mask, *, sentence):
        self.modes.append(self.training)
        return words[:, 0]

    def encode_video(self, frames, frame_mask):
        return VideoCode(frames, frames[:, 0])

    def similarity(self, query, code):
        return query @ code.video.T


@pytest.mark.parametrize("batch_size", [1, 7, 200])
def test_evaluation(batch_size: int) -> None:
    """150 videos with two captions each: one scores best, one behind exactly 20 others."""
    count = 150
    one_hot = torch.eye(count)
    captions, words = [], {}
    for i in range(count):
        captions += [Caption(f"{i}#enc#{n}", str(i), "x") for n in range(2)]
        words[f"{i}#enc#0"] = one_hot[i][None]
        ahead = torch.arange(i + 1, i + 21) % count
        words[f"{i}#enc#1"] = (one_hot[i] + 2 * one_hot[ahead].sum(0))[None]
    frames = {str(i): one_hot[i][None] for i in range(count)}
    data = PrvrDataset(captions, frames, words)
    loader = DataLoader(data, batch_size, collate_fn=collate_prvr)
    model = Scorer().train()
    got = evaluate_prvr(model, loader)
    expected = {"R@1": 50.0, "R@5": 50.0, "R@10": 50.0, "R@100": 100.0, "SumR": 250.0}
    assert got == pytest.approx(expected) and list(got) == list(expected)
    assert model.training and not any(model.modes)


def test_evaluation_by_another_similarity() -> None:
    """It is computed in evaluation mode too."""
    frames = {str(i): torch.eye(120)[i][None] for i in range(120)}
    captions = [Caption(f"{i}#enc#0", str(i), "x") for i in range(120)]
    words = {f"{i}#enc#0": frames[str(i)] for i in range(120)}
    loader = DataLoader(PrvrDataset(captions, frames, words), 50, collate_fn=collate_prvr)
    model = Scorer().train()

    def reversed_(query: torch.Tensor, code: VideoCode) -> torch.Tensor:
        model.modes.append(model.training)
        return -(query @ code.video.T)

    assert evaluate_prvr(model, loader, similarity=reversed_)["R@100"] == 0
    assert model.training and len(model.modes) == 4 and not any(model.modes)


def test_evaluation_restores_the_mode_after_an_error() -> None:
    model = Scorer().train()
    with pytest.raises(AttributeError):
        evaluate_prvr(model, [SimpleNamespace()])
    assert model.training
    with pytest.raises(ValueError, match="at least one batch"):
        evaluate_prvr(model, [])


@pytest.mark.parametrize("prefix", [None, 0, 1])
def test_frames_of_cached_tokens(tmp_path: Path, prefix: int | None) -> None:
    encoder = frozen_encoder()
    cache_tokens(encoder, Videos(), tmp_path / "tokens")
    cached = CachedTokens(tmp_path / "tokens")
    ids = [f"v{i}" for i in range(COUNT)]
    features = CachedFrames(cached, ids, num_prefix_tokens=prefix)
    assert list(features) == ids and "v9" not in features and len(features) == COUNT
    for index, video in enumerate(ids):
        tokens = cached[index][0][MASKS[index]]
        assert torch.equal(features[video], tokens.mean(1) if prefix == 0 else tokens[:, 0])
    with pytest.raises(ValueError, match=r"5 different ids, .* got 4, of which 4"):
        CachedFrames(cached, ids[:-1])
    with pytest.raises(ValueError, match="got 5, of which 4"):
        CachedFrames(cached, ["v0", *ids[:-1]])


def test_wrong_data_sets() -> None:
    words = word_features()
    with pytest.raises(ValueError, match="at least one caption"):
        PrvrDataset([], frame_features(), words)
    with pytest.raises(ValueError, match="max_frames must be at least 1, got 0"):
        dataset(max_frames=0)
    with pytest.raises(ValueError, match=r"2 of 2 videos have no frame .*; 3 of 3 captions"):
        PrvrDataset(TRAIN, {}, words, sentences={})
    with pytest.raises(ValueError, match=r"of 'v_c#enc#0' must have shape .* got \(4, 4\)"):
        dataset(sentences=words)[0]
    with pytest.raises(ValueError, match="at least one video"):
        collate_prvr([])
    videos = [PrvrVideo(torch.ones(2, width), [torch.ones(1, 3)], []) for width in (3, 4)]
    with pytest.raises(ValueError, match=r"frames of a batch .* same width, got \[3, 4\]"):
        collate_prvr(videos)
    videos = [PrvrVideo(torch.ones(2, 3), [torch.ones(1, 3)], [torch.ones(n)]) for n in (3, 4)]
    with pytest.raises(ValueError, match=r"sentences of a batch .* same width, got \[3, 4\]"):
        collate_prvr(videos)
    with pytest.raises(ValueError, match=r"words must have shape \(length, width\), got \(3,\)"):
        collate_prvr([PrvrVideo(torch.ones(2, 3), [torch.ones(3)], [])])
