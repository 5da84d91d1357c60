"""MeanMaxSim against its definition in loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter import MeanMaxSim
from tests.support.tolerances import assert_close

A, W, B, T, D = 3, 4, 2, 5, 6
WORD_MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 0]])
FRAME_MASK = torch.tensor([[1, 1, 1, 1, 1], [0, 1, 0, 1, 0]])


def drawn() -> tuple[Tensor, Tensor, Tensor]:
    """Draw words, class tokens and frame features, not normalised."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((A, W, D), (B, T, D), (B, T, D))
    return tuple(
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    )


def mean_max_sim(words: Tensor, features: Tensor, word_mask: Tensor, mask: Tensor) -> Tensor:
    """Compute one level as it is defined, pair by pair and word by word."""
    rows = []
    for text, valid in zip(words, word_mask.bool(), strict=True):
        for video, real in zip(features, mask.bool(), strict=True):
            best = [
                torch.cosine_similarity(word, video[real], dim=-1).max() for word in text[valid]
            ]
            rows.append(torch.stack(best).mean() if best else words.sum() * 0)
    return torch.stack(rows).view(len(words), len(features))


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
def test_definition(masked: bool) -> None:
    words, frames, fused = drawn()
    word_mask = WORD_MASK if masked else torch.ones(A, W)
    mask = FRAME_MASK if masked else torch.ones(B, T)
    masks = (word_mask, mask) if masked else ()
    scorer = MeanMaxSim((0.5, 2.0))
    frame = mean_max_sim(words, frames, word_mask, mask)
    video = mean_max_sim(words, fused, word_mask, mask)
    scores = scorer.scores(words, frames, fused, *masks)
    assert_close(scores.frame, frame)
    assert_close(scores.video, video)
    total = scorer(words, frames, fused, *masks)
    assert_close(total, 0.5 * frame + 2 * video)

    inputs, weights = (words, frames, fused), torch.randn(A, B, dtype=torch.float64)
    got = torch.autograd.grad((total * weights).sum(), inputs)
    expected = torch.autograd.grad(((0.5 * frame + 2 * video) * weights).sum(), inputs)
    for gradient, wanted in zip(got, expected, strict=True):
        assert wanted.abs().sum() > 0
        assert_close(gradient, wanted)


def test_masked_words_and_frames_may_hold_anything() -> None:
    words, frames, fused = (tensor.detach() for tensor in drawn())
    expected = MeanMaxSim()(words, frames, fused, WORD_MASK, FRAME_MASK)
    words = torch.where(WORD_MASK[..., None] == 1, words, torch.nan).requires_grad_()
    frames, fused = (
        torch.where(FRAME_MASK[..., None] == 1, features, torch.inf) for features in (frames, fused)
    )
    scores = MeanMaxSim()(words, frames, fused, WORD_MASK, FRAME_MASK)
    assert torch.equal(scores, expected) and torch.equal(scores[2], torch.zeros(2))
    scores.sum().backward()
    assert torch.equal(words.grad[WORD_MASK == 0], torch.zeros(6, D))


@pytest.mark.parametrize(("weights", "left_out"), [((1.0, 0.0), "video"), ((0.0, 1.0), "frame")])
def test_a_level_of_weight_0_is_left_out(weights: tuple[float, float], left_out: str) -> None:
    words, frames, fused = drawn()
    scores = MeanMaxSim(weights).scores(words, frames, fused)
    assert getattr(scores, left_out) is None
    other = scores.frame if scores.video is None else scores.video
    assert_close(MeanMaxSim(weights)(words, frames, fused), other)


@pytest.mark.parametrize("weights", [(1.0,), (0.0, 0.0), (-1.0, 1.0)], ids=str)
def test_wrong_weights(weights: Any) -> None:
    with pytest.raises(ValueError, match="weights must be two numbers"):
        MeanMaxSim(weights)
