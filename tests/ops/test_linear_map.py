"""Linear maps by oneDNN against torch's own: outputs, gradients, and where they are taken."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from muse_adapter.layers.linear import Linear
from muse_adapter.ops import linear, linear_map, processor
from muse_adapter.ops.torch_private import has_onednn_linear

if not has_onednn_linear():
    pytest.skip("this build of torch has no oneDNN", allow_module_level=True)

BOUND = 2e-6  # of the largest value: sums of 40 numbers in float32


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    """Serve on every processor, and however small the map is, if there is something to multiply."""
    monkeypatch.setattr(linear_map, "onednn_multiplies_faster", lambda: True)
    monkeypatch.setattr(linear_map, "MIN_PRODUCTS", 1)


def tensors(*sizes, inputs=40, outputs=24):
    x = torch.randn(*sizes, inputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
    return [tensor.requires_grad_() for tensor in (x, weight, bias)]


def close(got, expected):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    return not expected.numel() or (got - expected).abs().max() <= BOUND * expected.abs().max()


def ours(y):
    """Whether oneDNN has computed y, by our function."""
    return "_OneDnnBackward" in str((y.grad_fn, y.grad_fn.next_functions))


@pytest.mark.parametrize("sizes", [(7,), (3, 5), (2, 3, 4), (1, 1), (2, 0)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_outputs_and_all_gradients(sizes, with_bias):
    given = tensors(*sizes)[: 3 if with_bias else 2]
    got, expected = linear(*given), F.linear(*given)
    assert ours(got) == (got.numel() > 0) and close(got, expected)
    grad = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad(got, given, grad),
        torch.autograd.grad(expected, given, grad),
        strict=True,
    ):
        assert close(mine, theirs)


def test_second_derivatives():
    given = tensors(3, 5)
    results = []
    for y in (linear(*given), F.linear(*given)):
        first = torch.autograd.grad(y.square().sum(), given, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), given))
    for mine, theirs in zip(*results, strict=True):
        assert close(mine, theirs)


@pytest.mark.parametrize("wanted", range(3), ids=["x", "weight", "bias"])
def test_one_gradient_alone(wanted):
    given = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(tensors(3, 5))]
    linear(*given).sum().backward()
    mine, given[wanted].grad = given[wanted].grad, None
    F.linear(*given).sum().backward()
    assert close(mine, given[wanted].grad)
    assert [t.grad is None for t in given].count(False) == 1


@pytest.mark.parametrize(
    "stored",
    [
        lambda t: t.t().contiguous().t(),
        lambda t: F.pad(t, (3, 2))[:, 3:-2],
        lambda t: t.repeat_interleave(2, 1)[:, ::2],
        lambda t: F.pad(t, (0, 1)).t().contiguous()[:-1].t(),
        lambda t: t[:1].expand(len(t), -1),
        lambda t: torch._neg_view(t),
    ],
    ids=["transposed", "part of rows", "steps", "part of columns", "one row", "negated"],
)
def test_matrices_of_any_strides(stored):
    x, weight, bias = tensors(7)
    given = stored(x), stored(weight), bias.repeat_interleave(2)[::2]
    got, expected = linear(*given), F.linear(*given)
    assert ours(got) and close(got, expected)
    for grad in (torch.ones(()).expand(expected.shape), torch.randn(24, 7).t()):
        mine, theirs = (
            torch.autograd.grad(y, (x, weight, bias), grad, retain_graph=True)
            for y in (got, expected)
        )
        assert all(map(close, mine, theirs))


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")
def test_where_it_does_not_serve(monkeypatch):
    """Then torch computes: the same numbers, and its own errors."""
    given = tensors(3, 5)
    assert ours(linear(*given))
    x, weight, bias = given
    for other in (
        [t.double() for t in given],
        [x[0, 0], weight, bias],
        [x, weight, bias[:1]],
        [x, weight[0], bias[0]],
    ):
        y = linear(*other)
        assert not ours(y) and torch.equal(y, F.linear(*other))
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(*given).dtype == torch.bfloat16
    for wrong in ([x[..., :3], weight], [x, weight.double()], [x, weight, bias[:7]]):
        with pytest.raises(RuntimeError):
            linear(*wrong)
    with monkeypatch.context() as patch:
        patch.setattr(linear_map, "MIN_PRODUCTS", 3 * 5 * 40 * 24 + 1)
        assert not ours(linear(*given))
    with monkeypatch.context() as patch:
        patch.setattr(linear_map, "onednn_multiplies_faster", lambda: False)
        assert not ours(linear(*given))
    with torch.backends.mkldnn.flags(enabled=False):
        assert not ours(linear(*given))


def test_transforms_are_torchs():
    x, weight, bias = (t.detach() for t in tensors(3, 5))
    tangent = torch.randn_like(x)
    assert torch.equal(
        torch.func.jvp(lambda t: linear(t, weight, bias), (x,), (tangent,))[1],
        torch.func.jvp(lambda t: F.linear(t, weight, bias), (x,), (tangent,))[1],
    )
    with torch.autograd.forward_ad.dual_level():
        dual = linear(torch.autograd.forward_ad.make_dual(x, tangent), weight, bias)
        got = torch.autograd.forward_ad.unpack_dual(dual).tangent
    assert close(got, F.linear(tangent, weight))
    each = torch.func.vmap(linear, (0, None, None))(x, weight, bias)
    assert close(each, F.linear(x, weight, bias))


@pytest.mark.parametrize(
    ("vectors", "maker", "expected"),
    [
        ("AVX512", "vendor_id\t: AuthenticAMD", (True, True)),
        ("AVX2", "vendor_id\t: AuthenticAMD", (True, False)),
        ("DEFAULT", "vendor_id\t: AuthenticAMD", (False, False)),
        ("AVX512", "vendor_id\t: GenuineIntel", (False, False)),
        ("AVX512", "AMD64 Family 25 Model 97 Stepping 2, AuthenticAMD", (True, True)),
        ("DEFAULT", "", (False, False)),
    ],
)
def test_processors(monkeypatch, vectors, maker, expected):
    monkeypatch.setattr(processor, "_vectors", lambda: vectors)
    monkeypatch.setattr(processor, "_maker", lambda: maker)

    def found():
        return processor.onednn_multiplies_faster(), processor.onednn_convolves_faster()

    monkeypatch.delenv("OMP_DYNAMIC", raising=False)
    assert found() == expected
    monkeypatch.setenv("OMP_DYNAMIC", "TRUE")
    assert found() == (False, False)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)], ids=["x", "weight"])
def test_keeps_only_what_its_gradients_read(wanted):
    x, weight, bias = (t.detach() for t in tensors(7))
    x.requires_grad_(wanted[0]), weight.requires_grad_(wanted[1])
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda tensor: tensor):
        linear(x, weight, bias)
    assert [t.shape for t in kept] == [weight.shape if wanted[0] else x.shape]


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_batched_gradients():
    given = tensors(3, 5)
    grads = torch.randn(4, 3, 5, 24)
    mine, theirs = (
        torch.autograd.grad(y, given, grads, is_grads_batched=True)
        for y in (linear(*given), F.linear(*given))
    )
    assert all(map(close, mine, theirs))


class Logged(torch.Tensor):
    """A tensor with operations of its own."""

    calls: ClassVar[list[str]] = []

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        cls.calls.append(getattr(function, "__name__", ""))
        return super().__torch_function__(function, types, args, kwargs or {})


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:The PyTorch API of nested")
def test_other_kinds_of_tensors_are_torchs():
    x, weight, bias = (t.detach() for t in tensors(7))
    linear(x, weight.as_subclass(Logged), bias)
    assert "linear" in Logged.calls
    assert close(linear(x, weight.to_sparse_csr(), bias), F.linear(x, weight, bias))
    nested = torch.nested.nested_tensor([x, x[:3]])
    got = linear(nested, weight, bias)
    assert got.is_nested and close(got.unbind()[1], F.linear(x[:3], weight, bias))


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
@pytest.mark.parametrize("tool", ["torch.compile", "torch.export", "torch.fx", "torch.jit"])
def test_traces_hold_torchs_own(tool):
    of, x = Linear(40, 24), torch.randn(3, 5, 40)
    match tool:
        case "torch.compile":
            calls = CompileCounterWithBackend("eager")
            torch.compile(of, fullgraph=True, backend=calls)(x)
            graph = calls.graphs[0].graph
        case "torch.export":
            graph = torch.export.export(of, (x,)).graph
        case "torch.fx":
            graph = torch.fx.symbolic_trace(of).graph
        case _:
            graph = torch.jit.trace(of, x).inlined_graph
    assert "linear" in str(graph) and "OneDnn" not in str(graph)


def test_layers_keep_their_names():
    named = [(name, tuple(p.shape)) for name, p in Linear(3, 2).named_parameters()]
    assert named == [("weight", (2, 3)), ("bias", (2,))]
