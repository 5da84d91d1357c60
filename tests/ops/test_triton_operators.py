"""The triton backend beyond the scan: convolutions, torch's rules, the head, what it says."""

from __future__ import annotations

import pytest
import torch

from muse_adapter import MultiScaleMamba, ops
from muse_adapter.ops import bidirectional_scan, causal_conv1d_silu, selective_scan, triton_gpu
from muse_adapter.ops.choice import ENVIRONMENT
from muse_adapter.ops.numba_cpu import NUMBA
from muse_adapter.ops.triton_gpu import TRITON as backend
from tests.support.triton_scans import (
    DEVICE,
    both_directions,
    compare,
    in_interpreter,
    normal,
    one_direction,
)

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.parametrize(
    ("length", "taps", "end", "directions"),
    [(9, 4, None, 2), (9, 4, 2, 2), (2, 4, None, 2), (130, 2, 100, 2), (5, 1, 3, 2), (7, 3, 5, 1)],
)
def test_convolutions(length, taps, end, directions):
    x = normal(2, length, 6).requires_grad_()
    weights = [
        (normal(6, 1, taps).requires_grad_(), normal(6).requires_grad_()) for _ in range(directions)
    ]
    named = {"x": x, **{f"{i} {j}": v for i, w in enumerate(weights) for j, v in enumerate(w)}}

    def run(name):
        y = causal_conv1d_silu(x, weights, end=end, backend=name)
        torch.manual_seed(1)
        loss = sum((part * normal(*part.shape)).sum() for part in y)
        gradients = torch.autograd.grad(loss, list(named.values()))
        return {**dict(enumerate(y)), **dict(zip(named, gradients, strict=True))}

    compare(run("triton"), run("reference"), 1e-11)


def test_step_sizes_over_their_range():
    """Softplus of the kernels is torch's, from where it vanishes to where it is the identity.

    Torch's own is the identity from 20 on, which is 2e-12 off at the next point of the ramp. In
    float32 the exponent of 2 is rounded: at -60, to half a unit of 87, 4e-6.
    """
    arguments = one_direction(2, channels=32, batch=1)
    arguments["delta_bias"] = None
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 4e-6)):
        ramp = torch.linspace(-60, 60, 64, device=DEVICE).reshape(1, 32, 2)
        given = {k: None if v is None else v.detach().to(dtype) for k, v in arguments.items()}
        given |= {"A": torch.zeros_like(given["A"]), "u": torch.ones_like(given["u"]), "D": None}
        given |= {"delta": ramp.to(dtype), "z": None}
        given["B"] = given["C"] = torch.ones_like(given["B"])
        # With A = 0 the first output is S dt.
        y = selective_scan(**given, delta_softplus=True, backend="triton")[0, :, 0]
        expected = 3 * torch.nn.functional.softplus(ramp[0, :, 0].double())
        assert ((y.double() - expected) / expected).abs().max() < bound


@pytest.mark.parametrize("part", ["scan", "gate", "convolution"])
def test_a_second_derivative_is_refused_by_name(part):
    (forward,) = both_directions(1, 4, 2, (3,), torch.float64)
    z = normal(1, 3, 4).requires_grad_()
    conv = (normal(4, 1, 2).requires_grad_(), normal(4).requires_grad_())
    if part == "convolution":
        (y,) = causal_conv1d_silu(z, [conv], backend="triton")
    else:
        y = bidirectional_scan(forward, None, z, backend="triton")
    wanted = forward.x if part == "scan" else z
    (gradient,) = torch.autograd.grad(y.sum(), wanted, create_graph=True)
    with pytest.raises(RuntimeError, match=r"triton backend .* no second derivative"):
        torch.autograd.grad(gradient.sum(), wanted)


# What is saved does not depend on the number of sides, but for the gradients' own operator.
@pytest.mark.parametrize(
    ("sides", "save"),
    [(1, False), pytest.param(2, True, marks=pytest.mark.slow), (1, True)],
    ids=["one, inference", "both, training", "one, training"],
)
def test_the_operators_keep_torchs_rules(sides, save):
    """Schema, fake results and gradients, as torch.compile and torch.export rely on them."""
    run = torch.ops.muse_adapter
    fields = []
    for length in (2, 3)[:sides]:
        (direction,) = both_directions(2, 4, 3, (length,), torch.float64)
        x, delta, A, B, C, D, bias = (tensor.detach() for tensor in direction)
        fields += [x, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, bias]
    if save:
        fields = [tensor.requires_grad_() for tensor in fields]
    lengths = torch.tensor([2, 1], device=DEVICE)
    torch.library.opcheck(run.triton_scan.default, (fields, [], lengths, 0b10, True, save))
    z = normal(2, 2, 4).requires_grad_(save)
    positions = torch.tensor([[0, 0], [1, 0]], device=DEVICE)
    for places, sizes in ((positions, (2, 3)), (None, (2, 2))):
        y = [normal(2, length, 4).requires_grad_(save) for length in sizes[:sides]]
        torch.library.opcheck(run.triton_gate.default, (z, places, y, save))
    x = normal(2, 3, 4).requires_grad_(save)
    weights = [normal(*shape).requires_grad_(save) for shape in ((4, 1, 2), (4,)) * sides]
    torch.library.opcheck(run.triton_convolutions.default, (x, weights, 2))


@pytest.mark.slow
def test_a_compiled_head_is_one_graph_forward_and_backward():
    fields = {"depth": 1, "scales": (1.0,), "dropout": 0, "init": "release"}
    head = MultiScaleMamba(dim=8, mixer="mamba", **fields).to(DEVICE)
    tokens, mask = normal(2, 1, 5, 8, dtype=torch.float32), torch.ones(2, 1, dtype=torch.bool)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")

    def run(model):
        head.zero_grad()
        with ops.use_backend("triton"):
            video = model(tokens, mask.to(DEVICE))
            video.sum().backward()
        return {"video": video, **{k: v.grad.clone() for k, v in head.named_parameters()}}

    compare(run(compiled), run(head), 1e-5)


def test_head():
    """The whole head, masks included, as on the torch backend."""
    head = MultiScaleMamba(dim=8, depth=1, scales=(1.0,), init="release").to(DEVICE).double().eval()
    tokens = normal(2, 2, 5, 8)
    mask = torch.tensor([[1, 1], [1, 0]])

    def run(name):
        head.zero_grad()
        with ops.use_backend(name):
            video = head(tokens, mask.to(DEVICE))
        video.square().sum().add(video.sum()).backward()
        return {"video": video, **{k: v.grad for k, v in head.named_parameters()}}

    compare(run("triton"), {k: v.clone() for k, v in run("torch").items()}, 1e-10)


def test_says_why_it_cannot_run(monkeypatch):
    assert "meta" in backend.unavailable(torch.device("meta"))
    with monkeypatch.context() as context:
        context.setattr(triton_gpu, "_interpreted", lambda: False)
        assert "got cpu" in backend.unavailable(torch.device("cpu"))
        context.setattr(torch.cuda, "is_available", lambda: False)
        assert "torch finds no GPU" in backend.unavailable()
        assert "TRITON_INTERPRET=1" in backend.unavailable()
    with monkeypatch.context() as context:
        context.setattr(triton_gpu, "_load_error", lambda: "triton does not load (x)")
        assert backend.unavailable() == "triton does not load (x)"
    monkeypatch.setattr(triton_gpu.importlib.util, "find_spec", lambda name: None)
    assert backend.unavailable() == "triton is not installed: pip install 'muse-adapter[triton]'"


@in_interpreter
def test_the_interpreter_is_never_chosen_automatically(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(NUMBA, "unavailable", lambda device=None: "hidden")
    assert ops.backends("cpu")["triton"].available
    assert ops.backend_for(torch.device("cpu")) == "torch"


@pytest.mark.parametrize("other", [False, True], ids=["B and C alike", "C of another type"])
def test_gradients_have_the_types_that_are_traced(other):
    """Of B and C in half precision: compiled code reads what the fake operator promises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    batch, length, channels, states = 1, 3, 4, 2
    fields = [
        normal(batch, length, channels, dtype=torch.float32),
        normal(batch, length, channels, dtype=torch.float32),
        -normal(channels, states, dtype=torch.float32).abs(),
        normal(batch, length, 1, states, dtype=torch.bfloat16),
        normal(batch, length, 1, states, dtype=torch.float32 if other else torch.bfloat16),
        normal(channels, dtype=torch.float32),
        normal(channels, dtype=torch.float32),
    ]
    saved = torch.zeros(1, 1, batch, states, channels, device=DEVICE)
    dy = [normal(batch, length, channels, dtype=torch.float32)]

    def run(dy, saved, fields):
        return torch.ops.muse_adapter.triton_scan_backward(dy, [], saved, fields, [], None, 0, True)

    got = run(dy, saved, fields)
    with FakeTensorMode() as mode:
        faked = [[mode.from_tensor(t) for t in tensors] for tensors in (dy, [saved], fields)]
        promised = run(faked[0], faked[1][0], faked[2])
    assert [(t.shape, t.dtype, t.stride()) for t in got] == [
        (t.shape, t.dtype, t.stride()) for t in promised
    ]
