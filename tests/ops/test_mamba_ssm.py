"""The mamba_ssm backend: its calls, through stand-ins of the packages.

A stand-in checks what the real function asks for (keywords, shapes, types, layout) and computes by
`reference`.
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch.nn import functional as F

from muse_adapter import ops
from muse_adapter.ops import mamba_ssm, selective_scan
from muse_adapter.ops.choice import ENVIRONMENT
from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.mamba_ssm import MAMBA_SSM as backend
from muse_adapter.ops.reference import REFERENCE as reference
from tests.support.mamba_scans import agree, draw, outcome

pytestmark = pytest.mark.usefixtures("nan_memory")
INTERFACE = "mamba_ssm.ops.selective_scan_interface"


def selective_scan_fn(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False,
    return_last_state=False,
):  # fmt: skip
    """What mamba-ssm's CUDA scan accepts; it has no gradient of the last state."""
    batch, channels, length = u.shape
    states = A.shape[1]
    assert u.dtype in (torch.float32, torch.float16, torch.bfloat16)
    assert delta.dtype == u.dtype and delta.shape == u.shape
    assert A.dtype == torch.float32 and A.shape == (channels, states)
    groups = {gain.shape[1] for gain in (B, C) if gain.dim() == 4} or {1}
    assert len(groups) == 1, "B and C must have one number of groups"
    assert B.dim() == 4 or groups == {1}, "a constant B allows one group only"
    for gain in (B, C):
        if gain.dim() == 2:
            assert gain.dtype == A.dtype and gain.shape == (channels, states)
        else:
            assert gain.dtype == u.dtype and gain.shape == (batch, *groups, states, length)
    for row in (D, delta_bias):
        assert row is None or (row.dtype == torch.float32 and row.shape == (channels,))
    assert z is None
    for tensor in (u, delta, A, B, C, D, delta_bias):
        assert tensor is None or tensor.stride(-1) == 1
    y, state = selective_scan(
        u, delta, A, B, C, D, None, delta_bias, delta_softplus, True, backend="reference"
    )
    return (y, state.detach()) if return_last_state else y


def causal_conv1d_fn(x, weight, bias=None, seq_idx=None, activation=None):
    """What causal-conv1d accepts."""
    assert x.dim() == 3 and x.dtype == weight.dtype == bias.dtype != torch.float64
    assert weight.shape[0] == bias.shape[0] == x.shape[1] and 2 <= weight.shape[1] <= 4
    assert seq_idx is None and activation in (None, "silu", "swish")
    y = F.conv1d(x, weight.unsqueeze(1), bias, padding=weight.shape[1] - 1, groups=x.shape[1])
    y = y[..., : x.shape[2]]
    return y if activation is None else F.silu(y)


def keywords_only(function, calls):
    def call(**keywords):
        calls.append(set(keywords))
        return function(**keywords)

    return call


@pytest.fixture
def packages(monkeypatch):
    """Stand-ins of both packages and their extensions; gives the keywords of each call."""
    calls = []
    contents = {
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        INTERFACE: {"selective_scan_fn": keywords_only(selective_scan_fn, calls)},
        "selective_scan_cuda": {},
        "causal_conv1d": {"causal_conv1d_fn": keywords_only(causal_conv1d_fn, calls)},
        "causal_conv1d_cuda": {},
    }
    for name, attributes in contents.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        module.__spec__ = object()
        monkeypatch.setitem(sys.modules, name, module)
    forget()
    yield calls
    forget()


def forget():
    mamba_ssm._scan_error.cache_clear()
    mamba_ssm._convolution_error.cache_clear()


@pytest.mark.parametrize("masked", [False, True], ids=["all valid", "lengths"])
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [1, 2, 15, 63])
def test_agrees_with_the_reference(packages, length, reverse, masked):
    arguments = draw(length)
    lengths = torch.tensor([length, length // 2]) if masked else None
    flags = {"delta_softplus": True, "reverse": reverse, "lengths": lengths}
    expected = outcome(reference, arguments, **flags)
    agree(outcome(backend, arguments, **flags), expected)
    assert packages and all("u" in keywords and "A" in keywords for keywords in packages)


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    ("B", "C"),
    [
        ("grouped", "grouped"),
        ("grouped", "variable"),
        ("three", "grouped"),
        ("constant", "variable"),
        ("constant", "grouped"),
        ("grouped", "constant"),
        ("constant", "constant"),
    ],
)
def test_grouped_and_constant_matrices(packages, B, C, reverse):
    arguments = draw(9, B=B, C=C)
    flags = {"delta_softplus": True, "reverse": reverse, "lengths": torch.tensor([9, 4])}
    agree(outcome(backend, arguments, **flags), outcome(reference, arguments, **flags))
    with torch.no_grad():  # without the steps that read the state out
        inputs = ScanInputs(**arguments, **flags)
        agree(backend.scan(inputs), reference.scan(inputs))


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(("B", "C"), [("variable", "grouped"), ("three", "constant")])
@pytest.mark.parametrize("length", [1, 9, 63, 150])
def test_initial_state(packages, length, B, C, reverse):
    """The kernels know none: its response is added, in chunks of time."""
    arguments = draw(length, B=B, C=C, initial=True)
    for softplus, lengths in ((True, torch.tensor([length, length // 2])), (False, None)):
        with torch.no_grad():
            arguments["delta"].abs_(), arguments["delta_bias"].abs_()
        flags = {"delta_softplus": softplus, "reverse": reverse, "lengths": lengths}
        agree(outcome(backend, arguments, **flags), outcome(reference, arguments, **flags))


@pytest.mark.parametrize("softplus", [False, True], ids=["as given", "softplus"])
@pytest.mark.parametrize("without", [(), ("D",), ("delta_bias",), ("D", "delta_bias")], ids=str)
def test_optional_arguments(packages, without, softplus):
    arguments = {k: None if k in without else v for k, v in draw(7).items()}
    with torch.no_grad():
        for name in {"delta", "delta_bias"} - set(without):
            arguments[name].abs_()
    flags = {"delta_softplus": softplus, "reverse": False, "lengths": torch.tensor([7, 3])}
    agree(outcome(backend, arguments, **flags), outcome(reference, arguments, **flags))


def test_padding_is_never_read(packages):
    arguments = draw(7)
    flags = {"delta_softplus": True, "reverse": True, "lengths": torch.tensor([7, 3])}
    expected = outcome(reference, arguments, **flags)
    with torch.no_grad():
        for name in ("x", "delta", "B", "C"):
            arguments[name][1, 3:] = float("nan")
    agree(outcome(backend, arguments, **flags), expected)


def test_half_precision_stays_float32_inside(packages):
    arguments = {k: v.detach().bfloat16() for k, v in draw(7).items()}
    flags = {"delta_softplus": True, "reverse": False, "lengths": None}
    inputs = ScanInputs(**arguments, **flags)
    agree(backend.scan(inputs), reference.scan(inputs))


def test_float64_is_refused_by_name(packages):
    arguments = {k: v.detach().double() for k, v in draw(3).items()}
    with pytest.raises(TypeError, match="no float64 kernels"):
        backend.scan(ScanInputs(**arguments))


@pytest.mark.parametrize(
    ("taps", "directions", "dtype", "used"),
    [
        (4, 2, torch.float32, 2),
        (2, 1, torch.float32, 1),
        (4, 2, torch.bfloat16, 2),
        (5, 2, torch.float32, 0),  # causal-conv1d has 2, 3 and 4 taps
        (4, 2, torch.float64, 0),
    ],
)
def test_convolutions(packages, taps, directions, dtype, used):
    x = torch.randn(2, 9, 6, dtype=dtype)
    weights = [(torch.randn(6, 1, taps), torch.randn(6)) for _ in range(directions)]
    got = backend.causal_conv1d_silu(x, weights, 5)
    assert len(packages) == used and all("activation" in keywords for keywords in packages)
    bound = 2e-2 if dtype == torch.bfloat16 else 1e-5
    for a, b in zip(got, reference.causal_conv1d_silu(x, weights, 5), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        assert torch.allclose(a, b, rtol=bound, atol=bound)


@pytest.mark.parametrize(
    ("hidden", "message"),
    [
        ("mamba_ssm", "mamba_ssm is not installed: .*muse-adapter\\[mamba\\]"),
        (INTERFACE, f"{INTERFACE} does not load .*MAMBA_KEEP_CUDA_BUILD=TRUE"),
        ("selective_scan_cuda", "selective_scan_cuda does not load .*MAMBA_KEEP_CUDA_BUILD=TRUE"),
    ],
)
def test_says_why_it_cannot_run(packages, monkeypatch, hidden, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert backend.unavailable() is None
    if hidden == "mamba_ssm":
        monkeypatch.delitem(sys.modules, hidden)
        monkeypatch.setattr(mamba_ssm.importlib.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setitem(sys.modules, hidden, None)
    forget()
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(backend.unavailable())


def test_needs_a_gpu(packages, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert backend.unavailable() == (
        "torch finds no GPU: install torch with CUDA, on a machine that has one"
    )
    assert "got cpu" in backend.unavailable(torch.device("cpu"))


def test_the_convolution_is_a_question_of_its_own(packages, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "causal_conv1d_cuda", None)
    assert backend.unavailable() is None
    assert "causal_conv1d_cuda does not load" in mamba_ssm._convolution_error()
    backend.causal_conv1d_silu(torch.randn(1, 3, 2), [(torch.randn(2, 1, 2), torch.randn(2))], 3)
    assert not packages


def test_a_function_that_is_gone_is_named(packages, monkeypatch):
    monkeypatch.delattr(sys.modules[INTERFACE], "selective_scan_fn")
    assert f"{INTERFACE} has no function selective_scan_fn" in mamba_ssm._scan_error()


def test_is_never_chosen_automatically(packages, monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(backend, "unavailable", lambda device=None: None)
    monkeypatch.setattr(
        "muse_adapter.ops.triton_gpu.TRITON.unavailable", lambda device=None: "hidden"
    )
    assert ops.backend_for(torch.device("cuda")) == "torch"
