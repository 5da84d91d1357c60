"""The short convolutions against torch's own, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from muse_adapter.ops import backends, causal_conv1d_silu, short_convolution

NUMBA_MISSING = backends("cpu")["numba"].reason
needs_numba = pytest.mark.skipif(
    NUMBA_MISSING is not None, reason=f"backend numba: {NUMBA_MISSING}"
)


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


# batch, length, channels, taps, directions, positions wanted of the first direction
SHAPES = {
    "one position": (1, 1, 16, 4, 2, 1),
    "two positions": (2, 2, 16, 4, 2, 2),
    "no multiple of a block": (2, 7, 5, 4, 2, 7),
    "one direction": (2, 130, 32, 4, 1, 130),
    "the first direction ends early": (3, 200, 32, 4, 2, 8),
    "one tap": (2, 70, 16, 1, 2, 33),
    "more videos than jobs": (40, 70, 16, 3, 2, 70),
    "one long video": (1, 1500, 48, 4, 2, 1500),
}


@pytest.mark.usefixtures("nan_memory")
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_both_directions_with_their_silu(backend, shape, dtype):
    batch, length, channels, taps, directions, end = shape
    x = torch.randn(batch, length, channels + 3, dtype=dtype)[..., 3:].requires_grad_()
    weights = [
        (
            torch.randn(channels, 1, taps, dtype=dtype, requires_grad=True),
            torch.randn(channels, dtype=dtype, requires_grad=True),
        )
        for _ in range(directions)
    ]
    expected = [
        F.silu(plain(x[:, : length if i else end], *weight, bool(i)))
        for i, weight in enumerate(weights)
    ]
    got = causal_conv1d_silu(x, weights, end=end, backend=backend)
    assert len(got) == directions
    inputs = [x, *(tensor for pair in weights for tensor in pair)]
    cotangents = [torch.randn_like(y) for y in expected]
    wanted = [*expected, *torch.autograd.grad(expected, inputs, cotangents)]
    given = [*got, *torch.autograd.grad(got, inputs, cotangents)]
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    for ours, theirs in zip(given, wanted, strict=True):
        assert ours.shape == theirs.shape
        assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


def test_one_result_used(backend):
    x = torch.randn(2, 70, 16, dtype=torch.float64, requires_grad=True)
    weights = [
        (torch.randn(16, 1, 4, dtype=torch.float64), torch.randn(16, dtype=torch.float64))
        for _ in range(2)
    ]
    for index in range(2):
        got = causal_conv1d_silu(x, weights, backend=backend)[index]
        expected = F.silu(plain(x, *weights[index], bool(index)))
        ours, theirs = (torch.autograd.grad(y.square().sum(), x)[0] for y in (got, expected))
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@needs_numba
def test_the_same_bits_with_any_number_of_threads(threads):
    x = torch.randn(3, 700, 64, requires_grad=True)
    weights = [(torch.randn(64, 1, 4, requires_grad=True), torch.randn(64)) for _ in range(2)]
    results = []
    for count in (1, 2, 5):
        threads(count)
        y = causal_conv1d_silu(x, weights, end=650, backend="numba")
        loss = y[0].sum() + y[1].square().sum()
        results.append([*y, *torch.autograd.grad(loss, [x, *(w for w, _ in weights)])])
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def numba_arguments():
    """x, weights and biases that the kernels of the numba backend take."""
    draws = ((2, 40, 16), (2, 4, 16), (2, 16))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in draws]


@needs_numba
@pytest.mark.parametrize("end", [40, 7])
def test_the_operators_keep_torchs_rules(end):
    x, w, bias = numba_arguments()
    torch.library.opcheck(torch.ops.muse_adapter.causal_conv1d_silu.default, (x, w, bias, end))
    grads = [torch.randn(2, size, 16, dtype=torch.float64) for size in (end, 40)]
    plain_inputs = [tensor.detach() for tensor in (x, w, bias)]
    backward = torch.ops.muse_adapter.causal_conv1d_silu_backward.default
    torch.library.opcheck(backward, (*plain_inputs, grads))


@needs_numba
def test_a_second_derivative_is_refused_by_name():
    x, w, bias = numba_arguments()
    y, _ = torch.ops.muse_adapter.causal_conv1d_silu(x, w, bias, 40)
    (grad,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative: use backend='reference'"):
        grad.sum().backward()
