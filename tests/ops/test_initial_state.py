"""The state that a scan starts from: against `reference`, and any cutting of a sequence."""

from __future__ import annotations

import itertools

import pytest
import torch

from muse_adapter.ops import selective_scan
from muse_adapter.ops.backend import by_name
from muse_adapter.ops.inputs import ScanInputs
from tests.support.scans import BOUND, check, compare, draw, fast_backends

pytestmark = pytest.mark.usefixtures("nan_memory")

directions = pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
dtypes = pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])


def draw_with_state(batch, channels, length, states, dtype, **options):
    arguments = draw(batch, channels, length, states, dtype, **options)
    state = torch.randn(batch, channels, states, dtype=torch.float64).to(dtype)
    return {**arguments, "initial_state": state.requires_grad_()}


@fast_backends
@dtypes
@directions
@pytest.mark.parametrize("length", [1, 2, 15, 33, 257])
def test_agrees_with_the_reference(backend, length, reverse, dtype):
    check(draw_with_state(2, 6, length, 4, dtype), backend, delta_softplus=True, reverse=reverse)


@fast_backends
@directions
@pytest.mark.parametrize("channels", [16, 37])
def test_sixteen_states(backend, channels, reverse):
    """The usual state size, over a few chunks."""
    arguments = draw_with_state(2, channels, 70, 16, torch.float32)
    check(arguments, backend, delta_softplus=True, reverse=reverse)


@fast_backends
@directions
@pytest.mark.parametrize(("B", "C"), [("grouped", "variable"), ("constant", "grouped")])
def test_grouped_and_constant_matrices(backend, B, C, reverse):
    arguments = draw_with_state(2, 6, 19, 4, torch.float64, B=B, C=C)
    check(arguments, backend, delta_softplus=True, reverse=reverse)


def outcome(backend, inputs, cotangents):
    y, state = by_name(backend).scan(inputs)
    loss = (y * cotangents[0]).sum() + (state * cotangents[1]).sum()
    gradients = torch.autograd.grad(loss, inputs.differentiable())
    return {"y": y, "state": state, **dict(zip(inputs._fields, gradients, strict=False))}


@fast_backends
@dtypes
@directions
def test_valid_lengths(backend, reverse, dtype):
    """An empty video keeps its state, and its gradient passes straight through."""
    shapes = [(3, 40, 6), (3, 40, 6), (6, 4), (3, 40, 1, 4), (3, 40, 2, 4), (6,), (6,), (3, 6, 4)]
    tensors = [torch.randn(shape, dtype=torch.float64) for shape in shapes]
    tensors[2] = -tensors[2].abs()
    lengths = torch.tensor([40, 0, 33])
    cotangents = torch.randn(3, 40, 6).double(), torch.randn(3, 6, 4).double()

    def inputs(dtype):
        given = [tensor.to(dtype).requires_grad_() for tensor in tensors]
        return ScanInputs(*given, lengths, True, reverse)

    got = outcome(backend, inputs(dtype), cotangents)
    compare(got, outcome("reference", inputs(torch.float64), cotangents), BOUND[dtype])
    assert torch.equal(got["state"][1], tensors[7][1].to(dtype))
    assert torch.equal(got["initial_state"][1].double(), cotangents[1][1].to(dtype).double())
    assert (got["y"][1] == 0).all()


@dtypes
@directions
@pytest.mark.parametrize("cuts", [[1], [20], [3, 4, 5], [7, 13, 32, 33]], ids=str)
def test_any_cutting_equals_one_call(backend, cuts, reverse, dtype):
    """Outputs, last state and all gradients, the one of the first state among them."""
    length = 41
    arguments = draw_with_state(2, 6, length, 4, dtype)
    cotangents = torch.randn(2, 6, length, dtype=dtype), torch.randn(2, 6, 4, dtype=dtype)
    options = {"delta_softplus": True, "reverse": reverse, "return_last_state": True}

    def gradients(y, state):
        loss = (y * cotangents[0]).sum() + (state * cotangents[1]).sum()
        found = torch.autograd.grad(loss, list(arguments.values()))
        return {"y": y, "state": state, **dict(zip(arguments, found, strict=True))}

    expected = gradients(*selective_scan(**arguments, **options, backend=backend))
    edges = [0, *cuts, length]
    parts = [slice(a, b) for a, b in itertools.pairwise(edges)]
    outputs, state = [], arguments["initial_state"]
    for part in reversed(parts) if reverse else parts:
        in_time = ("u", "delta", "B", "C", "z")
        given = {k: v[..., part] if k in in_time else v for k, v in arguments.items()}
        y, state = selective_scan(**{**given, "initial_state": state}, **options, backend=backend)
        outputs.append(y)
    joined = torch.cat(outputs[::-1] if reverse else outputs, dim=-1)
    compare(gradients(joined, state), expected, BOUND[dtype])


def test_the_state_is_not_written_to(backend):
    arguments = {k: v.detach() for k, v in draw_with_state(1, 16, 5, 4, torch.float32).items()}
    before = arguments["initial_state"].clone()
    selective_scan(**arguments, backend=backend)
    assert torch.equal(arguments["initial_state"], before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_state_of_half_precision_is_float32(backend, dtype):
    arguments = {k: v.detach() for k, v in draw_with_state(1, 4, 9, 3, torch.float32).items()}
    halves = {k: v.to(dtype) if k in ("u", "delta", "B", "C") else v for k, v in arguments.items()}
    _, state = selective_scan(**halves, return_last_state=True, backend=backend)
    wide = {k: v.double() for k, v in halves.items()}
    _, expected = selective_scan(**wide, return_last_state=True, backend="reference")
    assert state.dtype == torch.float32
    assert (state - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("backend", ["reference", "torch", "numba"], indirect=True)
def test_gradients_by_finite_differences(backend):
    arguments = draw_with_state(2, 2, 3, 2, torch.float64, B="grouped", C="constant")

    def scan(*values):
        given = dict(zip(arguments, values, strict=True))
        return selective_scan(**given, delta_softplus=True, return_last_state=True, backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(arguments.values()))


def test_a_wrong_shape_is_refused(backend):
    arguments = draw_with_state(2, 4, 5, 3, torch.float32)
    for wrong in ((2, 4), (2, 4, 2), (2, 3, 4), (1, 4, 3)):
        with pytest.raises(ValueError, match=r"initial_state must have shape \(2, 4, 3\), got"):
            selective_scan(**{**arguments, "initial_state": torch.zeros(wrong)}, backend=backend)
