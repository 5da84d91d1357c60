"""Numbers of the numba backend at their limits: exponentials, softplus, denormals."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from muse_adapter.ops.numba_cpu import NUMBA as backend
from tests.support.numba_scans import (
    BOUND,
    agree,
    cotangents_of,
    draw,
    gradients,
    naive,
    options,
    scan,
)

if backend.unavailable() is not None:
    pytest.skip(f"backend numba: {backend.unavailable()}", allow_module_level=True)

from muse_adapter.ops.numba_cpu import denormals
from muse_adapter.ops.operator import NEGLIGIBLE

pytestmark = pytest.mark.usefixtures("nan_memory")

dtypes = pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])
directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])


few_and_many_states = pytest.mark.parametrize("states", [4, 16])


def two_steps(x, delta, A):
    """y of two steps for many channels with one state and B = C = 1. x, delta: (2, E); A: (E,)."""
    ones = torch.ones(1, 2, 1, 1, dtype=x.dtype)
    arguments = (x[None], delta[None], A[:, None].to(x.dtype), ones, ones, None, None)
    return scan(*arguments, **options(softplus=False))[0][0]


@dtypes
def test_exponential_over_its_range(dtype):
    """The state is 1 after a first step of dt = 1, then exp(dt)."""
    exponent = torch.linspace(-110, 95, 40001, dtype=dtype)
    x, dt = torch.zeros(2, 40001, dtype=dtype), torch.stack([torch.ones(40001), exponent]).to(dtype)
    x[0] = 1
    got, expected = two_steps(x, dt, torch.ones(40001))[1], exponent.double().exp()
    eps = torch.finfo(dtype).eps
    # In float32 results near the smallest normal number are flushed, and those at the largest are
    # infinite half a binade early.
    normal = (expected > 1e-37) & (expected < 1.5e38) if dtype == torch.float32 else expected > 0
    error = (got.double() / expected - 1).abs()[normal]
    # The exponent itself is rounded once in base 2.
    assert (error <= eps * (2 + exponent.double().abs()[normal])).all()
    if dtype == torch.float32:
        assert (got[exponent < -88] == 0).all()
        assert got[exponent > 89].isinf().all()
        assert ((got[~normal] < 2e-37) | (got[~normal] > 1e38)).all()


@dtypes
def test_exponential_at_its_ends(dtype):
    exponent = torch.tensor(
        [-3e38, -1e30, -1e4, -104, 0.0, -0.0, 104, 1e4, 1e30, 3e38], dtype=dtype
    )
    if dtype == torch.float64:
        exponent *= 10
    x, dt = torch.zeros(2, 10, dtype=dtype), torch.stack([torch.ones(10, dtype=dtype), exponent])
    x[0] = 1
    got = two_steps(x, dt, torch.ones(10))[1]
    assert got.tolist() == [0, 0, 0, 0, 1, 1, *[float("inf")] * 4]


@few_and_many_states
@directions
def test_steep_steps_among_others(reverse, states):
    """Decays that vanish in one step stand next to others in a chunk."""
    shape = (2, 200, 48, states)
    arguments = draw(torch.float32, *shape)
    delta = arguments[1].detach()
    generator = torch.Generator().manual_seed(0)
    steep = torch.rand(delta.shape, generator=generator) < 0.002  # in about every second chunk
    arguments[1] = torch.where(steep, delta.abs() * 300, delta).requires_grad_()
    exact = [tensor.detach().double().requires_grad_() for tensor in arguments]
    cotangents = cotangents_of(torch.float32, *shape)
    got = gradients(scan, arguments, cotangents, **options(reverse))
    agree(got, gradients(naive, exact, cotangents, **options(reverse)), 1e-5)


@dtypes
def test_exponential_of_any_nan(dtype):
    """Also of one with bits set that the polynomial would shift into the exponent."""
    patterns = torch.tensor([0x7FC00000, 0x7FC00001, 0x7F800001, 0x7FFFFFFF, -1], dtype=torch.int32)
    rates = patterns.view(torch.float32).to(dtype)
    x = torch.ones(2, 5, dtype=dtype)
    assert two_steps(x, x, rates).isnan().all()


@dtypes
def test_softplus_is_torchs(dtype):
    """y = softplus(delta) for one step with x = B = C = 1; its slope is the gradient of delta."""
    delta = torch.linspace(-80, 60, 14001, dtype=dtype)
    special = torch.tensor([20.0, 20.000001, 19.999999, -1e30, 1e30, float("inf"), float("-inf")])
    delta = torch.cat([delta, special.to(dtype)]).requires_grad_()
    channels = len(delta)
    ones = torch.ones(1, 1, 1, 1, dtype=dtype)
    A = -torch.ones(channels, 1, dtype=dtype)
    x = torch.ones(1, 1, channels, dtype=dtype)
    y, _ = scan(x, delta[None, None], A, ones, ones, None, None, **options())
    (slope,) = torch.autograd.grad(y.sum(), delta)
    exact = delta.detach().double().requires_grad_()
    expected = F.softplus(exact)
    (expected_slope,) = torch.autograd.grad(expected.sum(), exact)
    eps = torch.finfo(dtype).eps
    negligible = expected_slope < NEGLIGIBLE[dtype]
    for got, want in ((y[0, 0], expected), (slope, expected_slope.masked_fill(negligible, 0))):
        size = torch.finfo(dtype).tiny + eps * (4 + exact.clamp(-100, 100).abs()) * want.abs()
        near = (got.double() - want).abs() <= size
        assert (near | (got == want)).all()


@pytest.mark.skipif(not denormals.FLUSH, reason="this processor's mode is left as it is")
@directions
def test_what_decays_below_the_normal_range_is_zero(reverse, threads):
    # One input, then nothing: the state halves 400 times, the gradient on its way back as well.
    threads(2)
    length, channels, states = 401, 256, 16
    x = torch.zeros(2, length, channels)
    x[:, -1 if reverse else 0] = 1e-3
    one = torch.ones(2, length, channels)
    gains = torch.ones(2, length, 1, states)
    A = torch.full((channels, states), math.log(0.5))
    tensors = [t.requires_grad_() for t in (x, one, A, gains, gains.clone())]
    y, state = scan(*tensors, None, None, delta_softplus=False, reverse=reverse, lengths=None)
    smallest = torch.finfo(torch.float32).tiny
    assert (y != 0).sum() > 100 * channels
    assert not ((y != 0) & (y.abs() < smallest)).any()
    assert (state == 0).all()
    assert torch.tensor(1e-30) * 1e-10 != 0, "the caller's own mode is as it was"


@pytest.mark.skipif(not denormals.FLUSH, reason="this processor's mode is left as it is")
@few_and_many_states
@directions
def test_gradients_below_the_normal_range_are_zero(reverse, states):
    """Also where a large number would lift them above it again."""
    arguments = draw(torch.float32, 1, 40, 16, states)
    with torch.no_grad():
        arguments[0].fill_(2.0**60)
    _, state = scan(*arguments, **options(reverse))
    for exponent, nothing in ((-120, False), (-130, True)):
        given = torch.full_like(state, 2.0**exponent)
        (slope,) = torch.autograd.grad(state, arguments[2], given, retain_graph=True)
        assert (slope == 0).all() == nothing
    assert torch.tensor(1e-30) * 1e-10 != 0, "the caller's own mode is as it was"
