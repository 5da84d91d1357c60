"""The head in training: checkpointing, half precision; several processes: `tests/training`."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import MultiScaleMamba
from muse_adapter.ops import use_backend
from tests.support.head_forms import EVERY_FORM, active
from tests.support.tolerances import assert_close


@EVERY_FORM
@pytest.mark.parametrize("masked", [False, True], ids=["all frames", "masked"])
def test_gradient_checkpointing_changes_nothing(aggregation, mixer, masked):
    head = active(aggregation=aggregation, mixer=mixer, dropout=0.5).train()
    mask = torch.tensor([[1, 1, 1], [1, 0, 1]]) if masked else None
    results = []
    for enable in (False, True):
        head.set_grad_checkpointing(enable)
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
        torch.manual_seed(5)  # dropout must fall on the same places
        video = head(tokens, mask)
        results.append([video, *torch.autograd.grad(video.sum(), [tokens, *head.parameters()])])
    for plain, checkpointed in zip(*results, strict=True):
        assert_close(checkpointed, plain, "gradients")


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_checkpointing_recomputes_on_the_backend_of_the_forward_pass(backend):
    head = active(dropout=0.0)
    tokens = torch.randn(2, 3, 5, 8)
    gradients = []
    for enable in (False, True):
        head.set_grad_checkpointing(enable)
        with use_backend(backend):
            loss = head(tokens).sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))  # after the block
    for plain, checkpointed in zip(*gradients, strict=True):
        assert_close(checkpointed, plain, "gradients")


def test_checkpointing_lets_a_graph_go_backwards_twice():
    head, tokens = active(dropout=0.0), torch.randn(2, 3, 5, 8)
    head.set_grad_checkpointing(True)
    loss, weights = head(tokens).sum(), list(head.parameters())
    first = torch.autograd.grad(loss, weights, retain_graph=True)
    for again, before in zip(torch.autograd.grad(loss, weights), first, strict=True):
        assert torch.equal(again, before)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
@pytest.mark.parametrize("init", ["identity", "release"])
def test_autocast_stays_finite_over_long_sequences_and_large_tokens(dtype, init):
    torch.manual_seed(0)
    head = MultiScaleMamba(dim=32, depth=2, init=init)
    if init == "identity":  # small weights in place of zeros
        for layer in head.layers:
            torch.nn.init.normal_(layer.fc.weight, std=0.02)
    tokens = (torch.rand(1, 63, 50, 32) * 2 - 1) * 1e3
    tokens[0, 1] = 1e3
    tokens.requires_grad_()
    with torch.autocast("cpu", dtype):
        frames = head.forward_features(tokens)  # L = 63 * 255 = 16,065
        video = head.forward_head(frames)
        loss = video.float().square().sum() + video.float().sum()
    loss.backward()
    assert frames.isfinite().all() and video.isfinite().all()
    assert tokens.grad.isfinite().all()
    for name, parameter in head.named_parameters():
        assert parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_autocast_is_near_float32_and_takes_tokens_of_any_type(dtype):
    head = active().eval()
    tokens = torch.randn(2, 3, 17, 8)
    expected = head(tokens)
    with torch.autocast("cpu", dtype):
        assert_close(head(tokens), expected, dtype=dtype)
        assert_close(head(tokens.to(dtype)), expected, dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_a_whole_head_in_half_precision(dtype):
    head = active().eval()
    tokens = torch.randn(2, 3, 17, 8)
    expected = head(tokens)
    got = head.to(dtype)(tokens.to(dtype))
    assert got.dtype == dtype
    assert_close(got, expected)
