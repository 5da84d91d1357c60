"""Mean pooling: its definition, masks, half precision."""

from __future__ import annotations

import math

import pytest
import torch

from muse_adapter.layers.pool import mean_pool
from tests.support.tolerances import assert_close


def definition(frames):
    """Pool the frames (T, D) of one video in a loop."""
    unit = [frame / math.sqrt(sum(value**2 for value in frame)) for frame in frames]
    mean = sum(unit) / len(unit)
    return mean / mean.norm()


@pytest.mark.parametrize("mask", [None, [[1, 1, 1], [0, 1, 1]]], ids=["all frames", "masked"])
def test_definition(mask):
    frames = torch.randn(2, 3, 5, dtype=torch.float64)
    got = mean_pool(frames, None if mask is None else torch.tensor(mask, dtype=torch.bool))
    keep = torch.ones(2, 3, dtype=torch.bool) if mask is None else torch.tensor(mask).bool()
    expected = torch.stack([definition(video[k]) for video, k in zip(frames, keep, strict=True)])
    assert_close(got, expected, "rounding")


def test_masked_nan_and_empty_videos():
    frames = torch.randn(2, 3, 5, dtype=torch.float64)
    frames[0, 1] = math.nan
    frames.requires_grad_()
    mask = torch.tensor([[True, False, True], [False] * 3])
    pooled = mean_pool(frames, mask)
    pooled.sum().backward()
    assert pooled[0].isfinite().all() and not pooled[1].any()
    assert frames.grad.isfinite().all()
    assert not frames.grad[~mask].any()


@pytest.mark.parametrize("mask", [None, torch.ones(1, 2).bool()], ids=["no mask", "mask"])
def test_large_half_precision_frames_do_not_overflow(mask):
    frames = torch.full((1, 2, 512), 1e3, dtype=torch.float16)
    pooled = mean_pool(frames, mask)
    assert pooled.dtype == torch.float16
    assert_close(pooled.float().norm(), torch.tensor(1.0), "rounding", dtype=torch.float16)
