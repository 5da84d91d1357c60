"""The contrastive loss against its definition, gradients included."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from muse_adapter.training.losses import contrastive_loss
from tests.support.tolerances import assert_close


def definition(logits: Tensor) -> Tensor:
    """Compute the mean of -log softmax at the pairs, along rows and along columns, in loops."""
    size = len(logits)
    total = torch.zeros((), dtype=logits.dtype)
    for i in range(size):
        row = sum(torch.exp(logits[i, j]) for j in range(size))
        column = sum(torch.exp(logits[j, i]) for j in range(size))
        total = total + torch.log(row) + torch.log(column) - 2 * logits[i, i]
    return total / (2 * size)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_value_and_gradient(size: int, dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(size, size)).to(dtype).requires_grad_()
    expected = logits.detach().double().requires_grad_()
    loss = contrastive_loss(logits)
    assert loss.shape == () and loss.dtype == dtype
    loss.backward()
    reference = definition(expected)
    reference.backward()
    # One pair has the loss 0, which rounding alone decides: an absolute bound.
    assert_close(loss.double() + 1, reference + 1, dtype=dtype)
    assert_close(logits.grad.double() + 1, expected.grad + 1, "gradients", dtype=dtype)


def test_gradient_by_finite_differences() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(contrastive_loss, logits)


def test_by_hand() -> None:
    # Equal logits: chance, log(3). Far apart: no loss if right, the whole distance if wrong.
    assert contrastive_loss(torch.zeros(3, 3)).item() == pytest.approx(math.log(3))
    apart = 100 * torch.eye(2)
    assert contrastive_loss(apart).item() == pytest.approx(0, abs=1e-6)
    assert contrastive_loss(apart.flip(0)).item() == pytest.approx(100)


def test_directions_count_equally() -> None:
    logits = torch.randn(4, 4, dtype=torch.float64)
    assert_close(contrastive_loss(logits), contrastive_loss(logits.T), "rounding")


def test_large_logits_do_not_overflow() -> None:
    assert contrastive_loss(torch.randn(4, 4) * 1e4).isfinite()


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (4,), (), (2, 2, 2), (0, 0)], ids=str)
def test_refuses(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"logits must be square.*got shape") as caught:
        contrastive_loss(torch.zeros(shape))
    assert str(shape) in str(caught.value)
