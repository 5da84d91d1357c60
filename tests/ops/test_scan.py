"""The contract of the scan: every backend against `reference`, on outputs and all gradients."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import selective_scan
from muse_adapter.ops.operator import NEGLIGIBLE
from tests.support.scans import BOUND, check, compare, draw, fast_backends, results

pytestmark = pytest.mark.usefixtures("nan_memory")


@fast_backends
@pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 15, 63, 257, 1000])
def test_lengths_and_directions(backend, length, reverse, dtype):
    check(draw(2, 6, length, 4, dtype), backend, delta_softplus=True, reverse=reverse)


@pytest.mark.slow
@fast_backends
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_papers_length(backend, reverse):
    arguments = draw(1, 16, 3060, 16, torch.float64)
    check(arguments, backend, delta_softplus=True, reverse=reverse)


@fast_backends
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("B", "C"),
    [
        ("grouped", "grouped"),
        ("constant", "constant"),
        ("constant", "variable"),
        ("variable", "grouped"),
    ],
)
def test_grouped_and_constant_matrices(backend, B, C, reverse):
    arguments = draw(2, 6, 19, 4, torch.float64, B=B, C=C)
    check(arguments, backend, delta_softplus=True, reverse=reverse)


@fast_backends
@pytest.mark.parametrize("softplus", [False, True], ids=["as given", "softplus"])
@pytest.mark.parametrize(
    "without", [(), ("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")], ids=str
)
def test_optional_arguments(backend, without, softplus):
    arguments = draw(2, 5, 33, 3, torch.float64, without=without)
    if not softplus:
        with torch.no_grad():
            arguments["delta"].abs_()
            if arguments["delta_bias"] is not None:
                arguments["delta_bias"].abs_()
    check(arguments, backend, delta_softplus=softplus)


def test_the_reference_is_the_formula(backend):
    """Two steps written out, for every backend."""
    u, delta = torch.tensor([[[2.0, 3.0]]]).double(), torch.tensor([[[0.5, 0.25]]]).double()
    A, B, C = (torch.tensor(v).double() for v in ([[-1.0]], [[[4.0, 5.0]]], [[[6.0, 7.0]]]))
    h0 = 0.5 * 4 * 2
    h1 = torch.tensor(-0.25).double().exp() * h0 + 0.25 * 5 * 3
    y, state = selective_scan(u, delta, A, B, C, return_last_state=True, backend=backend)
    expected = torch.stack([torch.tensor(6.0 * h0), 7 * h1]).reshape(1, 1, 2)
    assert torch.allclose(y, expected, rtol=1e-14)
    assert torch.allclose(state, h1.reshape(1, 1, 1), rtol=1e-14)


def test_reverse_is_the_flipped_scan(backend):
    arguments = draw(2, 4, 21, 3, torch.float64, B="grouped")
    y, state = selective_scan(**arguments, return_last_state=True, reverse=True, backend=backend)
    in_time = ("u", "delta", "B", "C", "z")
    flipped = {k: v.flip(-1) if k in in_time else v for k, v in arguments.items()}
    expected, end = selective_scan(**flipped, return_last_state=True, backend=backend)
    assert torch.allclose(y, expected.flip(-1), rtol=1e-12, atol=1e-13)
    assert torch.allclose(state, end, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_types(backend, dtype):
    arguments = {k: v.detach() for k, v in draw(1, 4, 9, 3, torch.float32).items()}
    in_time = ("u", "delta", "B", "C", "z")
    given = {k: v.to(dtype) if k in in_time else v for k, v in arguments.items()}
    y, state = selective_scan(**given, delta_softplus=True, return_last_state=True, backend=backend)
    assert y.dtype == dtype
    assert state.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    # Rounding the inputs is all that half precision costs: the state is float32.
    wide = {k: v.double() for k, v in given.items()}
    expected = selective_scan(**wide, delta_softplus=True, backend="reference")
    assert torch.allclose(y.double(), expected, rtol=2 * torch.finfo(dtype).eps + 1e-6, atol=1e-6)


def test_autocast_does_not_reach_into_the_scan(backend):
    arguments = draw(1, 4, 9, 3, torch.float32)
    cotangents = (torch.randn(1, 4, 9), torch.randn(1, 4, 3))
    expected = results(arguments, cotangents, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = results(arguments, cotangents, backend=backend)  # the backward pass, too, runs inside
    compare(got, expected, 1e-6)


def test_gradients_by_finite_differences(backend):
    arguments = draw(2, 4, 5, 2, torch.float64, B="grouped", C="constant")

    def scan(*values):
        given = dict(zip(arguments, values, strict=True))
        return selective_scan(**given, delta_softplus=True, return_last_state=True, backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(arguments.values()))


def test_nan_stays_in_its_video(backend):
    arguments = {k: v.detach() for k, v in draw(3, 4, 17, 3, torch.float32).items()}
    clean = selective_scan(**arguments, delta_softplus=True, backend=backend)
    arguments["u"] = arguments["u"].clone()
    arguments["u"][1, :, 5] = float("nan")
    y = selective_scan(**arguments, delta_softplus=True, backend=backend)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert torch.equal(y[1, :, :5], clean[1, :, :5]) and y[1, :, 5:].isnan().all()


def test_a_second_derivative_works_or_is_refused_by_name(backend):
    arguments = draw(1, 2, 4, 2, torch.float64)
    y = selective_scan(**arguments, delta_softplus=True, backend=backend)
    (gradient,) = torch.autograd.grad(y.sum(), arguments["u"], create_graph=True)
    if backend == "reference":
        assert torch.autograd.grad(gradient.sum(), arguments["delta"])[0].abs().max() > 0
    else:
        with pytest.raises(RuntimeError, match=f"{backend} backend .* no second derivative"):
            torch.autograd.grad(gradient.sum(), arguments["delta"])


@pytest.mark.parametrize("backend", ["numba", "torch"], indirect=True)
@pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_negligible_gradients_are_zero(backend, reverse, dtype):
    """On a CPU those that products would bring below the normal range; and no others."""
    length = 600 if dtype == torch.float32 else 1400
    arguments = draw(1, 20, length, 3, dtype, without=("D", "z", "delta_bias"))
    # Whatever is read of the last state has halved, or nearly, in every step since.
    with torch.no_grad():
        arguments["delta"].fill_(0.693)
        arguments["A"].fill_(-1)
    _, state = selective_scan(**arguments, return_last_state=True, reverse=reverse, backend=backend)
    bound = NEGLIGIBLE[dtype]
    for grad in torch.autograd.grad(state.sum(), [arguments[name] for name in ("u", "delta", "B")]):
        size = grad.abs()
        assert (size[size > 0] >= bound).all()
        assert ((size > 0) & (size < bound * 2**20)).any()
