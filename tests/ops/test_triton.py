"""The triton backend against `reference`: on a GPU where there is one, else in the interpreter."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops import Direction, bidirectional_scan, selective_scan
from muse_adapter.ops.backend import by_name
from muse_adapter.ops.inputs import ScanInputs
from tests.support.triton_scans import (
    BOUND,
    DEVICE,
    both_directions,
    compare,
    normal,
    one_direction,
    one_outcome,
    outcome,
)

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.fixture
def small_parts(monkeypatch):
    """Kernels cut even a few steps into segments, chunks and runs."""
    from muse_adapter.ops.triton_gpu import function

    for name, value in (
        ("CHUNK", 8),
        ("SHORTEST", 8),
        ("ENOUGH_FORWARD", 40),
        ("ENOUGH_BACKWARD", 20),
    ):
        monkeypatch.setattr(function, name, value)


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (1, torch.float64),
        (2, torch.float64),
        (15, torch.float64),
        (40, torch.float32),
        pytest.param(137, torch.float32, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_both_directions_at_any_length(length, dtype):
    forward, backward = both_directions(1, 6, 3, (length, length), dtype)
    z = normal(1, length, 6, dtype=dtype).requires_grad_()
    expected = outcome(forward, backward, z, "reference")
    compare(outcome(forward, backward, z, "triton"), expected, BOUND[dtype])


@pytest.mark.slow
def test_a_long_sequence():
    """Three segments, as the kernels cut them; on a GPU other tests take longer ones."""
    arguments = one_direction(200, channels=6, batch=1, dtype=torch.float32)
    options = {"delta_softplus": True, "reverse": True}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, BOUND[torch.float32])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [7, 8, 9, 17], ids=lambda length: f"{length} of 8")
def test_ends_of_segments_and_chunks(small_parts, length, reverse):
    """A length just below, at and above the end of a part; last states, too."""
    arguments = one_direction(length)
    options = {"delta_softplus": True, "reverse": reverse}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, 1e-11)


@pytest.mark.parametrize(
    ("B", "C", "without", "softplus"),
    [
        ("grouped", "grouped", (), True),
        ("constant", "constant", (), True),
        ("constant", "variable", ("D",), True),
        ("variable", "grouped", ("z",), True),
        ("one each", "constant", ("delta_bias",), True),
        ("variable", "variable", ("D", "z", "delta_bias"), True),
        ("variable", "variable", (), False),
        ("grouped", "constant", ("D", "z", "delta_bias"), False),
    ],
)
def test_matrices_and_optional_arguments(small_parts, B, C, without, softplus):
    arguments = one_direction(9, channels=4, B=B, C=C, without=without)
    if not softplus:  # negative steps grow without bound
        with torch.no_grad():
            for name in ("delta", "delta_bias"):
                if arguments[name] is not None:
                    arguments[name].abs_()
    options = {"delta_softplus": softplus, "reverse": True}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, 1e-11)


@pytest.mark.parametrize("used", ["y", "state"])
def test_one_result_used(used):
    arguments = one_direction(7)

    def gradients(name):
        y, state = selective_scan(**arguments, return_last_state=True, backend=name)
        wanted = {"y": y, "state": state}[used]
        inputs = [v for k, v in arguments.items() if used == "y" or k not in ("z", "C", "D")]
        got = torch.autograd.grad(wanted.square().sum(), inputs)
        return dict(enumerate(got))

    compare(gradients("triton"), gradients("reference"), 1e-11)


@pytest.mark.parametrize("cut", [13, 7], ids=["whole", "forward cut"])
def test_lengths_and_positions(small_parts, cut):
    """Padding holds NaN; a position may be wanted twice."""
    forward, backward = both_directions(3, 6, 3, (cut, 13), torch.float64)
    lengths = torch.tensor([13, 0, 8], device=DEVICE)
    positions = torch.tensor([[0, 3, 6], [1, 2, 0], [6, 0, 6]], device=DEVICE)
    z = normal(3, 3, 6).requires_grad_()
    options = {"lengths": lengths, "positions": positions}
    expected = outcome(forward, backward, z, "reference", **options)
    spoilt = []
    for direction in (forward, backward):
        behind = torch.arange(direction.x.shape[1], device=DEVICE) >= lengths.unsqueeze(1)
        spoilt.append(
            Direction(*(
                v.detach().masked_fill(behind[..., None], float("nan")).requires_grad_()
                if v.dim() == 3 else v
                for v in direction
            ))
        )  # fmt: skip
    compare(outcome(*spoilt, z, "triton", **options), expected, 1e-11)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 6, 13, pytest.param(25, marks=pytest.mark.slow)])
def test_initial_state(small_parts, length, reverse):
    """Over one segment and several; only the last state used, too."""
    arguments = one_direction(length)
    arguments["initial_state"] = normal(2, 8, 3).requires_grad_()
    options = {"delta_softplus": True, "reverse": reverse}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, 1e-11)


def test_initial_state_with_lengths(small_parts):
    """An empty video keeps its state, and its gradient passes straight through."""
    x, delta, A, B, C, D, bias = (
        tensor.detach().requires_grad_()
        for tensor in both_directions(3, 6, 3, (13,), torch.float64)[0]
    )
    state, lengths = normal(3, 6, 3).requires_grad_(), torch.tensor([13, 0, 8], device=DEVICE)
    matrices = B.unsqueeze(2), C.unsqueeze(2)
    inputs = ScanInputs(x, delta, A, *matrices, D, bias, state, lengths, True, True)
    wanted = [x, delta, A, B, C, D, bias, state]
    cotangents = normal(3, 13, 6), normal(3, 6, 3)
    results = {}
    for name in ("triton", "reference"):
        y, last = by_name(name).scan(inputs)
        loss = (y * cotangents[0]).sum() + (last * cotangents[1]).sum()
        gradients = torch.autograd.grad(loss, wanted, retain_graph=True)
        results[name] = dict(enumerate((y, last, *gradients)))
    compare(results["triton"], results["reference"], 1e-11)
    assert torch.equal(results["triton"][1][1], state[1])


def test_lengths_without_positions():
    forward, backward = both_directions(2, 6, 3, (9, 9), torch.float64)
    z = normal(2, 9, 6).requires_grad_()
    lengths = torch.tensor([4, 9], device=DEVICE)
    expected = outcome(forward, backward, z, "reference", lengths=lengths)
    compare(outcome(forward, backward, z, "triton", lengths=lengths), expected, 1e-11)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no videos", "no tokens"])
def test_nothing_to_scan(shape):
    x = normal(*shape, 6).requires_grad_()
    gain, weight = normal(*shape, 4), normal(6)
    direction = Direction(x, x, -normal(6, 4).abs(), gain, gain, weight, weight)
    y = bidirectional_scan(direction, direction, x, backend="triton")
    assert y.shape == torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_forward_direction_alone():
    forward, _ = both_directions(2, 6, 3, (9, 9), torch.float64)
    z = normal(2, 9, 6).requires_grad_()
    expected = outcome(forward, None, z, "reference")
    compare(outcome(forward, None, z, "triton"), expected, 1e-11)


def test_views_of_one_projection():
    """What the mixer gives: B and C lie in one tensor with the low rank of delta."""
    (forward,) = both_directions(2, 40, 16, (5,), torch.float64)
    joined = torch.cat([forward.B, forward.C, normal(2, 5, 3)], dim=-1).detach().requires_grad_()
    z = normal(2, 5, 40).requires_grad_()

    def gradient(name):
        B, C, _ = joined.split((16, 16, 3), dim=-1)
        y = bidirectional_scan(forward._replace(B=B, C=C), None, z, backend=name)
        return {"y": y, "joined": torch.autograd.grad(y.square().sum(), joined)[0]}

    compare(gradient("triton"), gradient("reference"), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_costs_the_rounding_of_results(dtype):
    directions = both_directions(2, 6, 4, (9, 9), torch.float32)
    halves = [
        Direction(*(
            v.detach().to(dtype).requires_grad_() if v.dim() == 3 else v for v in direction
        ))
        for direction in directions
    ]  # fmt: skip
    z = normal(2, 9, 6, dtype=dtype).requires_grad_()
    got = outcome(*halves, z, "triton")
    assert got["y"].dtype == got["forward x"].dtype == got["backward B"].dtype == dtype
    wide = [Direction(*(v.detach().double().requires_grad_() for v in half)) for half in halves]
    wide_z = z.detach().double().requires_grad_()
    y = bidirectional_scan(*wide, wide_z, backend="reference")
    torch.manual_seed(1)
    cotangent = normal(*y.shape, dtype=dtype).double()
    named = {f"{side} {k}": v for side, d in zip(("forward", "backward"), wide, strict=True)
             for k, v in d._asdict().items()} | {"z": wide_z}  # fmt: skip
    gradients = torch.autograd.grad((y * cotangent).sum(), list(named.values()))
    expected = {"y": y.detach(), **dict(zip(named, gradients, strict=True))}
    compare({k: v.double() for k, v in got.items()}, expected, 3 * torch.finfo(dtype).eps)


def test_nan_stays_in_its_video_and_behind():
    arguments = {k: v.detach() for k, v in one_direction(9).items()}
    clean = selective_scan(**arguments, delta_softplus=True, backend="triton")
    arguments["u"][1, :, 5] = float("nan")
    y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    assert torch.equal(y[0], clean[0]) and torch.equal(y[1, :, :5], clean[1, :, :5])
    assert y[1, :, 5:].isnan().all()
