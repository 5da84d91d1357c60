"""Masked frames: they influence nothing, whatever they contain, on every backend."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from muse_adapter.ops import use_backend
from tests.support.head_forms import EVERY_FORM, perturbed, random_tokens
from tests.support.tolerances import TOLERANCES, assert_close

# Real frames of a video.
MASKS = {"padding": [1, 1, 1, 0, 0], "holes": [1, 0, 1, 0, 1], "late start": [0, 0, 1, 1, 1]}


@EVERY_FORM
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("filling", [1e6, math.nan])
def test_masked_frames_influence_nothing(aggregation, mixer, mask, filling):
    check_masked_frames(aggregation, mixer, mask, filling)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS)
def test_masked_frames_influence_nothing_on_any_backend(backend, mask):
    with use_backend(backend):
        check_masked_frames("scale_wise", "bimamba", mask, math.nan)


def check_masked_frames(aggregation, mixer, mask, filling):
    """Outputs and gradients are those of the videos without their masked frames."""
    head = perturbed(aggregation=aggregation, mixer=mixer)
    mask = torch.tensor([[1] * 5, mask], dtype=torch.bool)
    tokens = random_tokens()
    alone = tokens[1:, mask[1]].clone().requires_grad_()
    given = torch.where(mask[:, :, None, None], tokens, filling).requires_grad_()

    expected_frames = head.forward_features(alone)
    expected = head.forward_head(expected_frames)
    frames = head.forward_features(given, mask)
    got = head(given, mask)
    assert_close(frames[1, mask[1]], expected_frames[0])
    assert_close(got[1], expected[0])

    cotangent = torch.randn_like(expected)
    expected_gradients = torch.autograd.grad(
        (expected * cotangent).sum(), [alone, *head.parameters()], allow_unused=True
    )
    gradients = torch.autograd.grad((got[1:] * cotangent).sum(), [given, *head.parameters()])
    assert not gradients[0][~mask].any()
    assert_close(gradients[0][1, mask[1]], expected_gradients[0][0], "gradients")
    largest = max(gradient.abs().max().item() for gradient in expected_gradients[1:])
    bound = TOLERANCES[torch.float64].gradients * largest
    for name, got_one, expected_one in zip(
        dict(head.named_parameters()), gradients[1:], expected_gradients[1:], strict=True
    ):
        # Relative to the largest gradient: some are nearly zero.
        assert (got_one - expected_one).abs().max().item() <= bound, name


@EVERY_FORM
def test_a_video_does_not_depend_on_its_batch(aggregation, mixer):
    head = perturbed(aggregation=aggregation, mixer=mixer)
    tokens = random_tokens(batch=3)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 1, 1]])
    expected = head(tokens[1:2], mask[1:2])
    with_nan = tokens.clone()
    with_nan[0, 2] = math.nan
    for batch in (tokens, tokens * torch.tensor([1e3, 1, -1]).reshape(3, 1, 1, 1), with_nan):
        assert_close(head(batch, mask)[1:2], expected)
    result = head(with_nan, mask)
    assert result[0].isnan().any()
    assert result[1:].isfinite().all()


def test_masked_frames_give_their_class_feature_or_a_constant_one():
    head = perturbed(in_dim=6)
    tokens = random_tokens(width=6)
    mask = torch.tensor([[True] * 5, [True, False, False, False, True]])
    tokens[1, 2], tokens[1, 3] = 0, math.nan
    with torch.no_grad():
        head.proj.bias.zero_()
    tokens.requires_grad_()
    frames = head.forward_features(tokens, mask)
    assert_close(frames[1, 1], head.proj(tokens[1, 1, 0]), "rounding")
    constant = torch.full((2, 8), 8**-0.5, dtype=torch.float64)
    assert_close(frames[1, 2:4], constant, "rounding")
    # Hosts divide by the norm first and then multiply by the mask.
    hosts = (frames / frames.norm(dim=-1, keepdim=True)) * mask.unsqueeze(-1)
    pooled = F.normalize(hosts.sum(1), dim=-1)
    assert_close(pooled, head(tokens, mask))
    pooled.sum().backward()
    assert not tokens.grad[1, 1:4].any()


@EVERY_FORM
def test_a_video_without_frames_is_zero_with_zero_gradient(aggregation, mixer):
    head = perturbed(aggregation=aggregation, mixer=mixer)
    tokens = random_tokens().requires_grad_()
    mask = torch.tensor([[1] * 5, [0] * 5])
    with pytest.warns(UserWarning, match=r"videos \[1\] have no valid frame"):
        video = head(tokens, mask)
    video.sum().backward()
    assert not video[1].any() and not tokens.grad[1].any()
    assert_close(video[0], head(tokens[:1])[0])
    for parameter in head.parameters():
        assert parameter.grad.isfinite().all()


def test_the_mask_may_have_any_type():
    head = perturbed()
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 0, 1]])
    expected = head(random_tokens(), mask.bool())
    for dtype in (torch.int64, torch.uint8, torch.float32, torch.float64):
        assert torch.equal(head(random_tokens(), mask.to(dtype)), expected)
