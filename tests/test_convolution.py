"""The short convolution against torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muse_adapter.ops import short_convolution


def plain(x, weight, bias, reverse):
    """By `conv1d` with zeros in front, on the flipped sequence for the reverse direction."""
    x = x.flip(1) if reverse else x
    padded = F.pad(x.transpose(1, 2), (weight.shape[-1] - 1, 0))
    y = F.conv1d(padded, weight, bias, groups=len(weight)).transpose(1, 2)
    return y.flip(1) if reverse else y


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 63])
@pytest.mark.parametrize("taps", [1, 2, 4])
def test_equals_conv1d(length, taps, reverse):
    x = torch.randn(2, length, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 1, taps, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    cotangent = torch.randn(2, length, 5, dtype=torch.float64)
    got = short_convolution(x, weight, bias, reverse=reverse)
    expected = plain(x, weight, bias, reverse)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(
        torch.autograd.grad(got, (x, weight, bias), cotangent),
        torch.autograd.grad(expected, (x, weight, bias), cotangent),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_keeps_the_type_of_x(dtype):
    y = short_convolution(torch.ones(1, 3, 2, dtype=dtype), torch.ones(2, 1, 2), torch.ones(2))
    assert y.dtype == dtype and y[0, :, 0].tolist() == [2, 3, 3]


def test_a_slice_of_a_wider_tensor():
    wide = torch.randn(2, 7, 10)
    weight, bias = torch.randn(5, 1, 4), torch.randn(5)
    part = wide[..., 5:]
    torch.testing.assert_close(
        short_convolution(part, weight, bias), plain(part.contiguous(), weight, bias, False)
    )
