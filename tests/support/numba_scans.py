"""What the tests of the numba backend share: scans, their definition, and comparisons."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.numba_cpu import NUMBA

NAMES = ("x", "delta", "A", "B", "C", "D", "bias")
# Of max|got - expected| / max|expected|: the same formulas in another order of sums; and rounding
# at 6e-8 in sums over all steps and states.
BOUND = {torch.float64: 1e-12, torch.float32: 1e-5}


def scan(x, delta, A, B, C, D, bias, *, delta_softplus, reverse, lengths):
    """The backend's scan."""
    return NUMBA.scan(
        ScanInputs(x, delta, A, B, C, D, bias, None, lengths, delta_softplus, reverse)
    )


def naive(x, delta, A, B, C, D, bias, *, delta_softplus, reverse, lengths):
    """The definition, one video and one step after the other, in float64."""
    batch, length, channels = x.shape
    x, delta, A, B, C = (tensor.double() for tensor in (x, delta, A, B, C))
    B, C = (
        gain.repeat_interleave(channels // gain.shape[2], 2).expand(batch, length, -1, -1)
        for gain in (B, C)
    )
    delta = delta if bias is None else delta + bias.double()
    dt = F.softplus(delta) if delta_softplus else delta
    outputs, states = [], []
    for video in range(batch):
        valid = length if lengths is None else int(lengths[video])
        steps = zip(*(tensor[video, :valid].unbind() for tensor in (x, dt, B, C)), strict=True)
        h = A * 0
        rows = []
        for x_t, dt_t, B_t, C_t in reversed(list(steps)) if reverse else steps:
            h = torch.exp(dt_t[:, None] * A) * h + (dt_t * x_t)[:, None] * B_t
            rows.append((h * C_t).sum(1))
        if reverse:
            rows.reverse()
        rows += [A.new_zeros(channels)] * (length - valid)
        y = torch.stack(rows)
        if D is not None:
            real = torch.arange(length)[:, None] < valid
            y = y + torch.where(real, x[video] * D.double(), 0.0)
        outputs.append(y)
        states.append(h)
    return torch.stack(outputs), torch.stack(states)


def draw(dtype, batch, length, channels, states, *, b=1, c=1, without=(), seed=0):
    """Random arguments. b, c: groups of B and C; or "constant", "video" (constant over time)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def gain(kind):
        shapes = {"constant": (1, 1, channels, states), "video": (batch, 1, 1, states)}
        return normal(*shapes.get(kind, (batch, length, kind, states)))

    tensors = (
        normal(batch, length, channels),
        normal(batch, length, channels) - 1,
        -normal(channels, states).abs() * 2,
        gain(b),
        gain(c),
        None if "D" in without else normal(channels),
        None if "bias" in without else normal(channels),
    )
    return [None if tensor is None else tensor.requires_grad_() for tensor in tensors]


def gradients(function, arguments, cotangents, **options):
    """Outputs and all gradients, by name; the cotangents are (dy, dstate), None for unused."""
    outputs = function(*arguments, **options)
    used = [(o, c.to(o.dtype)) for o, c in zip(outputs, cotangents, strict=True) if c is not None]
    wanted = {n: t for n, t in zip(NAMES, arguments, strict=True) if t is not None}
    results, weights = zip(*used, strict=True)
    given = torch.autograd.grad(
        results, list(wanted.values()), weights, allow_unused=True, materialize_grads=True
    )
    return dict(
        zip(["y", "state", *(f"grad {n}" for n in wanted)], [*outputs, *given], strict=True)
    )


def options(reverse=False, lengths=None, softplus=True):
    return {"delta_softplus": softplus, "reverse": reverse, "lengths": lengths}


def cotangents_of(dtype, batch, length, channels, states):
    return (
        torch.randn(batch, length, channels, dtype=dtype),
        torch.randn(batch, channels, states, dtype=dtype),
    )


def agree(got, expected, bound):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape, name
        error = (got[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
        assert error <= bound, f"{name} is off by {error:.1e}, allowed {bound:.0e}"  # NaN fails too


def identical(got, expected):
    for name, value in expected.items():
        assert torch.equal(got[name], value), f"{name} differs"
