"""`torch.func` over a whole head: the same gradients as autograd, or a refusal by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, jacrev, jvp, vmap

from muse_adapter import MultiScaleMamba
from muse_adapter.ops import backends, use_backend

CPU_BACKENDS = [
    name for name in ("reference", "torch", "numba") if backends("cpu")[name].reason is None
]
DIRECTION = torch.linspace(-1, 1, 8, dtype=torch.float64)

pytestmark = [
    pytest.mark.parametrize("backend", CPU_BACKENDS),
    # A batch is a loop over the kernels, and torch says that this is not its fastest way.
    pytest.mark.filterwarnings("ignore:There is a performance drop"),
]


@pytest.fixture
def head() -> MultiScaleMamba:
    torch.manual_seed(0)
    head = MultiScaleMamba(dim=8, depth=1, scales=(0.5, 1.0, 2.0), dropout=0.0).double()
    with torch.no_grad():  # the layers of a new head are identities
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(2, 2, 5, 8, dtype=torch.float64, generator=torch.manual_seed(1))


def loss(head: MultiScaleMamba, parameters: dict[str, Tensor], tokens: Tensor) -> Tensor:
    return (functional_call(head, parameters, (tokens,)) @ DIRECTION).sum()


def assert_equal(given: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert given.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(given[name], value, rtol=1e-10, atol=1e-12)


def test_gradients_and_gradients_of_each_video(
    backend: str, head: MultiScaleMamba, tokens: Tensor
) -> None:
    parameters = {name: value.detach() for name, value in head.named_parameters()}
    names = list(parameters)

    def by_autograd(tokens: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(loss(head, {}, tokens), list(head.parameters()))
        return dict(zip(names, gradients, strict=True))

    with use_backend(backend):
        given = grad(lambda weights: loss(head, weights, tokens))(parameters)
        assert_equal(given, by_autograd(tokens))
        one = grad(lambda weights, video: loss(head, weights, video[None]))
        each = vmap(one, (None, 0))(parameters, tokens)
        alone = [by_autograd(video[None]) for video in tokens]
    assert_equal(each, {name: torch.stack([one[name] for one in alone]) for name in names})


def test_masks_of_each_video(backend: str, head: MultiScaleMamba, tokens: Tensor) -> None:
    mask = torch.tensor([[True, True], [True, False]])
    with use_backend(backend):
        each = vmap(lambda video, valid: head(video[None], valid[None])[0])(tokens, mask)
        torch.testing.assert_close(each, head(tokens, mask), rtol=1e-10, atol=1e-12)


def test_jacobian_and_batched_gradients(
    backend: str, head: MultiScaleMamba, tokens: Tensor
) -> None:
    wanted = tokens.clone().requires_grad_()
    with use_backend(backend):
        video = head(wanted)
        rows = torch.eye(video.numel(), dtype=torch.float64).view(-1, *video.shape)
        expected = [torch.autograd.grad(video, wanted, r, retain_graph=True)[0] for r in rows]
        (batched,) = torch.autograd.grad(video, wanted, rows, is_grads_batched=True)
        jacobian = jacrev(head)(tokens)
    assert_equal({"batched": batched}, {"batched": torch.stack(expected)})
    assert_equal({"": jacobian.reshape(batched.shape)}, {"": torch.stack(expected)})


def test_second_derivatives_are_right_or_refused(
    backend: str, head: MultiScaleMamba, tokens: Tensor
) -> None:
    def penalty(tokens: Tensor) -> Tensor:
        return grad(lambda tokens: loss(head, {}, tokens))(tokens).square().sum()

    with use_backend(backend):
        if backend != "reference":
            with pytest.raises(RuntimeError, match=f"the {backend} backend .* no second deriv"):
                grad(penalty)(tokens)
            return
        wanted = tokens.clone().requires_grad_()
        (first,) = torch.autograd.grad(loss(head, {}, wanted), wanted, create_graph=True)
        (expected,) = torch.autograd.grad(first.square().sum(), wanted)
        assert_equal({"": grad(penalty)(tokens)}, {"": expected})


@pytest.mark.parametrize("transform", [grad, jacrev])
def test_checkpointing_is_refused_by_name(
    backend: str, head: MultiScaleMamba, tokens: Tensor, transform: Callable[..., Any]
) -> None:
    """Where gradients are taken; without them there is nothing to recompute."""
    head.set_grad_checkpointing()
    with use_backend(backend):
        with pytest.raises(RuntimeError, match=r"checkpointing .* call set_grad_checkpointing"):
            transform(lambda tokens: loss(head, {}, tokens))(tokens)
        wanted = [tokens.clone().requires_grad_() for _ in range(2)]
        (got,) = torch.autograd.grad(loss(head, {}, wanted[0]), wanted[0])
        head.set_grad_checkpointing(False)
        (expected,) = torch.autograd.grad(loss(head, {}, wanted[1]), wanted[1])
    assert_equal({"": got}, {"": expected})


def test_forward_mode_is_refused_by_name(
    backend: str, head: MultiScaleMamba, tokens: Tensor
) -> None:
    with use_backend(backend), pytest.raises(RuntimeError, match="no derivative in forward mode"):
        jvp(head, (tokens,), (tokens,))
