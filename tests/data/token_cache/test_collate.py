"""Batches of cached videos of different lengths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from muse_adapter import cache_tokens
from muse_adapter.data import collate_tokens
from tests.support.cached_tokens import MASKS, frozen_encoder, make_frames
from tests.support.small_encoders import ROUNDING


@pytest.mark.usefixtures("torch_scan")
def test_a_batch_of_different_lengths_gives_the_embeddings_of_the_videos(tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="cached tokens are safetensors files")
    frames, encoder = make_frames(), frozen_encoder()
    videos = [frames[0], frames[1, :1], (frames[2, :2], MASKS[2, :2]), (frames[3], MASKS[3])]
    cached = cache_tokens(encoder, videos, tmp_path)
    (batch,) = DataLoader(cached, batch_size=4, collate_fn=collate_tokens)
    tokens, mask = batch
    assert tokens.shape[:2] == mask.shape == (4, 3) and mask.dtype == torch.bool
    got = encoder.head(tokens, mask, grid=cached.grid)
    for index, video in enumerate(videos):
        alone, own_mask = video if isinstance(video, tuple) else (video, None)
        expected = encoder(alone[None], None if own_mask is None else own_mask[None])
        torch.testing.assert_close(got[index], expected[0], **ROUNDING[torch.float64])


@pytest.mark.parametrize(
    ("videos", "message"),
    [
        ([], "at least one video"),
        (
            [(torch.ones(2, 5, 3), torch.ones(2)), (torch.ones(2, 4, 3), torch.ones(2))],
            r"\(2, 5, 3\) for the first and \(2, 4, 3\) for video 1",
        ),
        ([(torch.ones(2, 5, 3), torch.ones(3))], r"mask of video 0 .* \(2,\), got \(3,\)"),
    ],
    ids=["none", "other tokens", "other mask"],
)
def test_wrong_batches(videos: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate_tokens(videos)
