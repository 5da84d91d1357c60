"""What the tests of the triton backend share: scans, their results with all gradients.

The kernels run on a GPU where there is one, else in the interpreter, which takes about 30 ms for a
step of time, forward and backward, whatever the width.
"""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import Direction, bidirectional_scan, selective_scan
from muse_adapter.ops.triton_gpu import TRITON

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
REASON = TRITON.unavailable(torch.device(DEVICE))
if REASON is not None:
    pytest.skip(f"backend triton: {REASON}", allow_module_level=True)

in_interpreter = pytest.mark.skipif(GPU, reason="shows the interpreter's side, and there is a GPU")

# max|got - expected| / max|expected|. Only the order of sums differs; the GPU's exponential of
# float32 is good to 2 units in the last place, and a state remembers hundreds of them.
BOUND = {torch.float64: 1e-11, torch.float32: 5e-5 if GPU else 1e-5}


def compare(got, expected, bound):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype, name
        error = (got[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
        assert error <= bound, f"{name} is off by {error:.1e}"  # NaN fails too


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)


def both_directions(batch, channels, states, lengths, dtype):
    """Two directions, of these lengths, all wanting gradients."""
    directions = []
    for length in lengths:
        tensors = [
            *(normal(batch, length, channels, dtype=dtype) for _ in range(2)),
            -normal(channels, states, dtype=dtype).abs() * 2,
            *(normal(batch, length, states, dtype=dtype) for _ in range(2)),
            *(normal(channels, dtype=dtype) for _ in range(2)),
        ]
        directions.append(Direction(*(tensor.requires_grad_() for tensor in tensors)))
    return directions


def outcome(forward, backward, z, name, seed=1, **options):
    """Output and all gradients of a bidirectional scan."""
    y = bidirectional_scan(forward, backward, z, backend=name, **options)
    torch.manual_seed(seed)
    cotangent = normal(*y.shape, dtype=y.dtype)
    named = {f"forward {k}": v for k, v in forward._asdict().items()}
    if backward is not None:
        named |= {f"backward {k}": v for k, v in backward._asdict().items()}
    named["z"] = z
    gradients = torch.autograd.grad((y * cotangent).sum(), list(named.values()))
    return {"y": y.detach(), **dict(zip(named, gradients, strict=True))}


def one_direction(
    length, *, channels=8, B="variable", C="variable", without=(), batch=2, states=3,
    dtype=torch.float64,
):  # fmt: skip
    """Arguments of `selective_scan`."""
    shapes = {
        "constant": (channels, states),
        "variable": (batch, states, length),
        "grouped": (batch, 2, states, length),
        "one each": (batch, channels, states, length),
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
    wanted = {k: None if k in without else v.to(dtype) for k, v in arguments.items()}
    return {k: None if v is None else v.requires_grad_() for k, v in wanted.items()}


def one_outcome(arguments, name, **options):
    """Output, last state and all gradients of `selective_scan`."""
    y, state = selective_scan(**arguments, return_last_state=True, backend=name, **options)
    torch.manual_seed(1)
    loss = (y * normal(*y.shape)).sum() + (state * normal(*state.shape)).sum()
    inputs = {key: value for key, value in arguments.items() if value is not None}
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "state": state, **dict(zip(inputs, gradients, strict=True))}
