"""The head in a patched host runs once per video, and the similarity uses only its frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.host_runs import SMALL
from tests.support.hosts import DIM, FRAMES, Session, make_batch

pytestmark = pytest.mark.usefixtures("torch_scan")


class CountedRuns:
    """Record the number of videos in each run of a host's head."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.videos: list[int] = []
        real = model.muse.forward_features

        def forward_features(tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.videos.append(len(tokens))
            return real(tokens, *args, **kwargs)

        monkeypatch.setattr(model.muse, "forward_features", forward_features)


def test_head_runs_once_per_video(patched: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    counted = CountedRuns(model, monkeypatch)
    patched.train(model, patched.optimizer(args, model), [make_batch(0)])
    assert counted.videos == [3]

    model.eval()
    with torch.no_grad():
        batches = [make_batch(seed) for seed in range(3)]
        features = [model.get_sequence_visual_output(b[0], b[2], b[1], *b[3:]) for b in batches]
        assert counted.videos == [3] * 4
        for text, _ in features:
            for (_, frames), batch in zip(features, batches, strict=True):
                words = text if isinstance(text, tuple) else (text,)
                model.get_similarity_logits(*words, frames, batch[1], batch[4], loose_type=True)
    assert counted.videos == [3] * 4, "similarities must not run the head"

    # The evaluation with several sentences per video selects videos and calls this directly.
    video, mask = batches[0][3][[0, 2]], batches[0][4][[0, 2]]
    with torch.no_grad():
        frames = model.get_visual_output(video, mask)
    assert counted.videos[-1] == 2
    torch.testing.assert_close(frames, features[0][1][[0, 2]])


def test_similarity_uses_only_the_fused_frames(
    patched: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = patched.build(patched.args(*SMALL))
    batch = make_batch(0, frames=(3, 3, 3))
    assert len(patched.similarity(model, batch)[0].unique()) == 3, "three videos, three columns"

    def similarity(fused: Tensor) -> Tensor:
        monkeypatch.setattr(model.muse, "forward_features", lambda *_: fused.repeat(3, 1, 1))
        return patched.similarity(model, batch)

    fused = torch.randn(1, FRAMES, DIM)
    first = similarity(fused)
    torch.testing.assert_close(first, first[:, :1].expand(-1, 3))
    # Only X-CLIP's frame contrasts ignore the mask and use the last frame.
    fused[:, -1] += 1
    differs = not torch.allclose(similarity(fused), first)
    assert differs == (patched.host.kind == "xclip")


def test_head_runs_once_per_batch(patched: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """100 texts and videos in batches of 16: 7 batches, and 49 pairs of batches."""
    model = patched.build(patched.args(*SMALL)).eval()
    counted = CountedRuns(model, monkeypatch)
    texts, videos = [], []
    with torch.no_grad():
        for start in range(0, 100, 16):
            size = min(16, 100 - start)
            ids, mask, types, video, video_mask = make_batch(start, size, (FRAMES,) * size)
            text, frames = model.get_sequence_visual_output(ids, types, mask, video, video_mask)
            texts.append((text if isinstance(text, tuple) else (text,), mask))
            videos.append((frames, video_mask))
        rows = [
            torch.cat([model.get_similarity_logits(*t, f, m, v)[0] for f, v in videos], dim=1)
            for t, m in texts
        ]
    assert torch.cat(rows).shape == (100, 100)
    assert counted.videos == [16] * 6 + [4]
