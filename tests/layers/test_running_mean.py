"""The embedding of what has been seen so far, against the pooling of all frames at once."""

from __future__ import annotations

import math

import pytest
import torch

from muse_adapter import RunningMean
from muse_adapter.layers.pool import mean_pool
from tests.support.tolerances import TOLERANCES, relative_error

FRAMES = torch.randn(3, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
MASK = torch.tensor([[1] * 7, [0, 0, 1, 0, 1, 1, 0], [1, 0, 1, 0, 0, 0, 0]], dtype=torch.bool)


def running(frames, mask, sizes):
    mean = RunningMean()
    masks = [None] * len(sizes) if mask is None else mask.split(sizes, 1)
    for part, part_mask in zip(frames.split(sizes, 1), masks, strict=True):
        mean.update(part, part_mask)
    return mean


@pytest.mark.parametrize("mask", [None, MASK, MASK.long()], ids=["whole", "mask", "mask of ints"])
@pytest.mark.parametrize("sizes", [[7], [1] * 7, [3, 1, 3]], ids=str)
def test_any_cutting_gives_the_mean_of_all_frames(mask, sizes):
    expected = mean_pool(FRAMES, None if mask is None else mask.bool())
    assert relative_error(running(FRAMES, mask, sizes).embedding, expected) <= 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_types(dtype):
    frames = 100 * FRAMES.to(dtype)
    got, expected = running(frames, MASK, [3, 4]).embedding, mean_pool(frames, MASK)
    assert got.dtype == dtype
    assert relative_error(got, expected) <= TOLERANCES[dtype].rounding


def test_gradients_are_those_of_the_mean_of_all_frames():
    frames = FRAMES.clone().requires_grad_()
    cotangent = torch.randn(3, 5, dtype=torch.float64)
    expected = torch.autograd.grad((mean_pool(frames, MASK) * cotangent).sum(), frames)[0]
    got = torch.autograd.grad((running(frames, MASK, [2, 5]).embedding * cotangent).sum(), frames)[
        0
    ]
    assert relative_error(got, expected) <= 1e-12


def test_masked_nan_and_videos_without_a_frame_so_far():
    frames = FRAMES.masked_fill(~MASK.unsqueeze(-1), math.nan)
    mean = RunningMean()
    mean.update(frames[:, :2], MASK[:, :2])
    assert mean.embedding[0].isfinite().all() and not mean.embedding[1].any()
    mean.update(frames[:, 2:], MASK[:, 2:])
    assert relative_error(mean.embedding, mean_pool(FRAMES, MASK)) <= 1e-12


def test_many_frames_lose_nothing_to_float32():
    frames = torch.randn(1, 4096, 4, generator=torch.Generator().manual_seed(0)).abs()
    mean = RunningMean()
    for _ in range(50):
        mean.update(frames)
    assert relative_error(mean.embedding, mean_pool(frames.double(), None)) <= 1e-7


def test_errors():
    mean = RunningMean()
    with pytest.raises(RuntimeError, match="before the first call of update"):
        mean.embedding  # noqa: B018
    with pytest.raises(ValueError, match=r"frames must have shape \(B, T, D\).* got \(3, 5\)"):
        mean.update(FRAMES[:, 0])
    with pytest.raises(ValueError, match=r"\(B, T\) = \(3, 7\), got \(3, 6\)"):
        mean.update(FRAMES, MASK[:, 1:])
    mean.update(FRAMES)
    with pytest.raises(ValueError, match=r"\(B, D\) = \(3, 5\) of the calls before, got \(2, 5\)"):
        mean.update(FRAMES[:2])
