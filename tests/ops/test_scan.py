"""The contract of the scan: every backend against `reference`, on outputs and all gradients."""

from __future__ import annotations

import logging

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from muse_adapter import ops
from muse_adapter.ops import (
    Direction,
    bidirectional_scan,
    dispatch,
    recurrent,
    selective_scan,
    use_backend,
)
from muse_adapter.ops.operator import NEGLIGIBLE

pytestmark = pytest.mark.usefixtures("nan_memory")
FAST = [name for name in dispatch.MODULES if name != "reference"]
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
    expected = results(arguments, cotangents, **options, backend="reference")
    compare(got, expected, BOUND[u.dtype])


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


def directions(length, dtype=torch.float64):
    def one(cut=length):
        a = draw(3, 6, length, 4, dtype)
        in_time = ("u", "delta", "B", "C")
        u, delta, B, C = (a[k].detach().transpose(1, 2)[:, :cut].clone() for k in in_time)
        values = [u, delta, a["A"], B, C]
        return Direction(*(v.detach().requires_grad_() for v in (*values, a["D"], a["delta_bias"])))

    return one


def one_by_one(forward, backward, z, lengths, positions):
    """`bidirectional_scan` by its words: each video alone, cut to its length, flipped in time."""
    rows = []
    for index, length in enumerate(lengths.tolist()):
        total = torch.zeros(forward.x.shape[2], backward.x.shape[1], dtype=z.dtype)
        for direction, flip in ((forward, False), (backward, True)):
            x, delta, A, B, C, D, bias = direction
            cut = min(length, x.shape[1])
            if cut == 0:
                continue
            order = slice(None)
            row = [v[index : index + 1, :cut].transpose(1, 2) for v in (x, delta, B, C)]
            row = [v.flip(-1) if flip else v[..., order] for v in row]
            y = selective_scan(
                row[0], row[1], A, row[2], row[3], D, delta_bias=bias, delta_softplus=True,
                backend="reference",
            )  # fmt: skip
            y = (y.flip(-1) if flip else y)[0]
            total = total + F.pad(y, (0, total.shape[1] - cut))
        rows.append(total.T)
    y = torch.stack(rows)
    y = torch.stack([row[index] for row, index in zip(y, positions, strict=True)])
    return y * F.silu(z)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no videos", "no tokens"])
def test_nothing_to_scan(backend, shape):
    x = torch.randn(*shape, 6, requires_grad=True)
    gain, weight = torch.randn(*shape, 4), torch.ones(6)
    direction = Direction(x, x, -torch.ones(6, 4), gain, gain, weight, weight)
    y = bidirectional_scan(direction, direction, x, backend=backend)
    assert y.shape == torch.autograd.grad(y.sum(), x)[0].shape == x.shape


@pytest.mark.parametrize("cut", [21, 7], ids=["whole", "forward cut"])
def test_both_directions_with_lengths_and_positions(backend, cut):
    one = directions(21)
    forward, backward = one(cut), one()
    lengths = torch.tensor([21, 0, 9])
    positions = torch.tensor([[0, 3, 6], [1, 2, 0], [6, 0, 5]])
    z = torch.randn(3, 3, 6, dtype=torch.float64, requires_grad=True)
    # What stands behind a video's length is never read, not even to be multiplied by zero.
    behind = torch.arange(21) >= lengths.unsqueeze(1)
    spoilt = [
        Direction(*(
            v.detach().masked_fill(behind[:, : v.shape[1], None], float("nan")).requires_grad_()
            if v.dim() == 3 else v
            for v in direction
        ))
        for direction in (forward, backward)
    ]  # fmt: skip
    got = bidirectional_scan(*spoilt, z, lengths=lengths, positions=positions, backend=backend)
    expected = one_by_one(forward, backward, z, lengths, positions)
    assert (got - expected).abs().max() < 1e-12
    wanted = [v for direction in spoilt for v in direction]
    originals = [v for direction in (forward, backward) for v in direction]
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad((got * cotangent).sum(), [*wanted, z]),
        torch.autograd.grad((expected * cotangent).sum(), [*originals, z]),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-11


@pytest.mark.parametrize("both", [True, False], ids=["both directions", "one direction"])
@pytest.mark.parametrize("channels", [32, 6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_inference_is_the_definition(backend, dtype, channels, both):
    """Without gradients a backend may join the directions and the gate."""
    length, lengths = 70, torch.tensor([70, 0, 33])
    behind = torch.arange(length) >= lengths.unsqueeze(1)

    def direction():
        a = {name: t.detach() for name, t in draw(3, channels, length, 4, dtype).items()}
        rows = [a[name].transpose(1, 2) for name in ("u", "delta", "B", "C")]
        u, delta, B, C = (t.masked_fill(behind[:, :, None], float("nan")) for t in rows)
        return Direction(u, delta, a["A"], B, C, a["D"], a["delta_bias"])

    forward, backward = direction(), direction() if both else None
    z = torch.randn(3, length, 2 * channels, dtype=dtype)[..., channels:]  # half of a wider tensor
    got = bidirectional_scan(forward, backward, z, lengths=lengths, backend=backend)
    expected = bidirectional_scan(forward, backward, z, lengths=lengths, backend="reference")
    assert got.dtype == dtype and got.shape == expected.shape
    bound = 1e-12 if dtype == torch.float64 else 1e-5
    assert (got - expected).abs().max() < bound * expected.abs().max()
    assert (got[behind] == 0).all()


def test_nan_stays_in_its_video(backend):
    arguments = {k: v.detach() for k, v in draw(3, 4, 17, 3, torch.float32).items()}
    clean = selective_scan(**arguments, delta_softplus=True, backend=backend)
    arguments["u"] = arguments["u"].clone()
    arguments["u"][1, :, 5] = float("nan")
    y = selective_scan(**arguments, delta_softplus=True, backend=backend)
    assert torch.equal(y[[0, 2]], clean[[0, 2]])
    assert torch.equal(y[1, :, :5], clean[1, :, :5]) and y[1, :, 5:].isnan().all()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 4)
        return out


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_the_torch_backend_keeps_no_state_of_every_token(reverse):
    """The largest tensor of forward and backward is a chunk's, not (batch, L, E, S)."""
    batch, channels, length, states = 1, 64, 4000, 16
    arguments = draw(batch, channels, length, states, torch.float32)
    u, delta, A, B, C, D, bias = (
        arguments[name].detach() for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")
    )
    rows = (u.transpose(1, 2), delta.transpose(1, 2), A)
    inputs = (*rows, B.transpose(1, 2)[:, :, None], C.transpose(1, 2)[:, :, None], D, bias)
    flags = {"delta_softplus": True, "reverse": reverse, "lengths": None}
    every_state = batch * channels * length * states
    # Below the operator, into which the mode does not look.
    with Largest() as largest:
        kept = torch.empty(recurrent.kept_shape(batch, length, channels, states))
        y, _ = recurrent.scan_forward(*inputs, **flags, kept=kept)
        recurrent.scan_backward(torch.ones_like(y), None, kept, *inputs, **flags)
    assert largest.elements < every_state / 4
    with Largest() as largest:
        torch.stack([A] * length)
    assert largest.elements >= every_state, "a tensor of every state would be seen"


def test_choice_of_the_backend(monkeypatch, caplog):
    arguments = {k: v.detach() for k, v in draw(1, 2, 3, 2, torch.float32).items()}
    called = []
    for name in dispatch.MODULES:
        module = dispatch._module(name)
        original = module.scan
        monkeypatch.setattr(
            module, "scan", lambda *a, _n=name, _f=original, **k: called.append(_n) or _f(*a, **k)
        )
    monkeypatch.delenv(dispatch.ENVIRONMENT, raising=False)
    automatic = next(name for name, status in ops.backends("cpu").items() if status.available)
    selective_scan(**arguments)
    monkeypatch.setenv(dispatch.ENVIRONMENT, "torch")
    dispatch._logged.clear()
    with caplog.at_level(logging.INFO, "muse_adapter"):
        selective_scan(**arguments)
        selective_scan(**arguments)
    assert caplog.text.count("backend torch (MUSE_ADAPTER_BACKEND)") == 1
    with use_backend("reference"):
        selective_scan(**arguments)
        selective_scan(**arguments, backend="torch")
    selective_scan(**arguments)
    assert called == [automatic, "torch", "torch", "reference", "torch", "torch"]


def test_backends_says_why_one_is_missing():
    assert ops.backends()["reference"] == (True, None)
    on_gpu = ops.backends("cuda")["numba"]
    assert not on_gpu.available and on_gpu.reason


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
