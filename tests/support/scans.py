"""What the tests of the scan share: arguments, results with all gradients, comparisons."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import selective_scan
from tests.support.backends import cpu_backends

FAST = [name for name in cpu_backends() if name != "reference"]
fast_backends = pytest.mark.parametrize("backend", FAST, indirect=True)

# Against the reference in float64 only the order of sums differs; in float32 each sum of S * L
# terms rounds at 6e-8, and gradients sum over the whole sequence.
BOUND = {torch.float64: 1e-11, torch.float32: 1e-5}


def draw(batch, channels, length, states, dtype, *, B="variable", C="variable", without=()):
    """Random arguments of `selective_scan`, all wanting gradients."""
    generator = torch.Generator().manual_seed(length)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    shapes = {
        "constant": (channels, states),
        "variable": (batch, states, length),
        "grouped": (batch, 2, states, length),
    }
    arguments = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, states).abs() * 2,
        "B": normal(*shapes[B]),
        "C": normal(*shapes[C]),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    return {k: None if k in without else v.requires_grad_() for k, v in arguments.items()}


def results(arguments, cotangents, **options):
    """Output, last state and every gradient."""
    y, state = selective_scan(**arguments, return_last_state=True, **options)
    loss = (y * cotangents[0]).sum() + (state * cotangents[1]).sum()
    inputs = {name: tensor for name, tensor in arguments.items() if tensor is not None}
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    named = {f"grad {name}": value for name, value in zip(inputs, gradients, strict=True)}
    return {"y": y, "state": state, **named}


def compare(got, expected, bound):
    for name, value in expected.items():
        error = (got[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
        assert error <= bound, f"{name} is off by {error:.1e}"  # NaN fails too


def check(arguments, backend, **options):
    """The backend agrees with `reference` on the output, the last state and every gradient."""
    u, states = arguments["u"], arguments["A"].shape[1]
    cotangents = torch.randn_like(u), torch.randn(*u.shape[:2], states, dtype=u.dtype)
    got = results(arguments, cotangents, **options, backend=backend)
    # In float64 always: two results in float32 may be off in opposite directions.
    exact = {
        name: None if tensor is None else tensor.detach().double().requires_grad_()
        for name, tensor in arguments.items()
    }
    wide = [cotangent.double() for cotangent in cotangents]
    expected = results(exact, wide, **options, backend="reference")
    compare(got, expected, BOUND[u.dtype])
