"""3x3 convolutions of maps against torch's own: outputs, gradients and their gradients."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from muse_adapter.layers.pyramid import Conv3x3
from muse_adapter.ops import backends, conv3x3, numba_cpu, use_backend

if backends("cpu")["numba"].reason is not None:
    pytest.skip(backends("cpu")["numba"].reason, allow_module_level=True)

from muse_adapter.ops.numba_cpu import winograd

pytestmark = pytest.mark.usefixtures("nan_memory")

BOUND = {torch.float64: 1e-13, torch.float32: 1e-5}
SIZES = [(1, 1, 1), (2, 2, 2), (3, 3, 5), (5, 7, 4), (2, 14, 14), (0, 3, 3)]


@pytest.fixture(autouse=True)
def any_processor(monkeypatch):
    """Winograd also where torch is faster."""
    monkeypatch.setattr(numba_cpu, "onednn_convolves_faster", lambda: False)


def tensors(count=2, height=5, width=4, dtype=torch.float64, inputs=32, outputs=48):
    torch.manual_seed(0)
    x = torch.randn(count, inputs, height, width, dtype=dtype)
    weight = torch.randn(outputs, inputs, 3, 3, dtype=dtype) / 17
    bias = torch.randn(outputs, dtype=dtype)
    return [tensor.requires_grad_() for tensor in (x, weight, bias)]


def close(got, expected):
    assert got.dtype == expected.dtype and got.shape == expected.shape
    if not expected.numel():
        return True
    return (got - expected).abs().max() <= BOUND[expected.dtype] * expected.abs().max()


def both(x, weight, bias):
    """Outputs of the numba backend and of torch; the first must be our operator's."""
    got = conv3x3(x, weight, bias, backend="numba")
    assert "conv3x3" in str(got.grad_fn.next_functions[0][0])
    return got, F.conv2d(x, weight, bias, padding=1)


@pytest.fixture(params=[1, 8, 600], ids="rounds of {} tiles".format)
def rounds(request, monkeypatch):
    monkeypatch.setattr(winograd, "TILES", request.param)


@pytest.mark.parametrize("dtype", BOUND, ids=["float64", "float32"])
@pytest.mark.parametrize("size", SIZES, ids="{0[0]} maps of {0[1]}x{0[2]}".format)
def test_outputs_and_all_gradients(rounds, size, dtype):
    given = tensors(*size, dtype)
    got, expected = both(*given)
    assert close(got, expected)
    grad = torch.randn_like(expected)
    for ours, theirs in zip(
        torch.autograd.grad(got, given, grad),
        torch.autograd.grad(expected, given, grad),
        strict=True,
    ):
        assert close(ours, theirs)


def test_second_derivatives():
    given = tensors()
    grad = torch.randn(2, 48, 5, 4, dtype=torch.float64, requires_grad=True)
    cotangents = [torch.randn_like(tensor) for tensor in given]
    results = []
    for y in both(*given):
        first = torch.autograd.grad(y, given, grad, create_graph=True)
        results.append(torch.autograd.grad(first, [given[0], given[1], grad], cotangents))
    for ours, theirs in zip(*results, strict=True):
        assert close(ours, theirs)


@pytest.mark.parametrize("wanted", range(3), ids=["x", "weight", "bias"])
def test_one_gradient_alone(wanted):
    given = [
        tensor.detach().requires_grad_(index == wanted) for index, tensor in enumerate(tensors())
    ]
    got, expected = both(*given)
    got.sum().backward()
    ours, given[wanted].grad = given[wanted].grad, None
    expected.sum().backward()
    assert close(ours, given[wanted].grad)


def channels_last(x):
    return x.to(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "stored",
    [
        channels_last,
        lambda x: torch.stack([x, x], -1)[..., 0],
        lambda x: x.flatten(2).transpose(1, 2).contiguous().transpose(1, 2).unflatten(2, (5, 4)),
        lambda x: channels_last(x[:, :, :1]).expand(-1, -1, 5, -1),
        lambda x: channels_last(F.pad(x, (2, 1, 1, 2)))[:, :, 1:6, 2:6],
    ],
    ids=["channels last", "every second number", "tokens", "a repeated row", "cut out"],
)
def test_maps_and_weights_of_any_strides(stored):
    x, weight, bias = tensors()
    weight = torch.stack([weight, weight], 2)[:, :, 0]
    given = stored(x), weight, torch.stack([bias, bias], -1)[..., 0]
    got, expected = both(*given)
    assert close(got, expected)
    for grad in (torch.randn(48, dtype=x.dtype)[None, :, None, None], torch.ones(()).double()):
        grad = grad.expand(expected.shape)
        of = torch.autograd.grad(expected, (x, weight), grad, retain_graph=True)
        for ours, theirs in zip(
            torch.autograd.grad(got, (x, weight), grad, retain_graph=True), of, strict=True
        ):
            assert close(ours, theirs)


def test_rounding_of_a_real_width():
    x, weight, bias = tensors(2, 14, 14, torch.float32, inputs=512, outputs=512)
    with torch.no_grad():
        got = conv3x3(x, weight, bias, backend="numba")
        exact = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert (got - exact).std() < 1e-6 * exact.std()


def test_nothing_leaks_from_map_to_map(rounds):
    x, weight, bias = (tensor.detach() for tensor in tensors(4))
    clean = conv3x3(x, weight, bias, backend="numba")
    x[1, 0, 2, 2] = float("nan")
    got = conv3x3(x, weight, bias, backend="numba")
    kept = [0, 2, 3]
    assert torch.equal(got[kept], clean[kept]) and got[1].isnan().any()


def test_the_same_numbers_every_time_and_on_any_number_of_threads(threads):
    given = tensors(9, 7, 7, torch.float32)
    results = []
    for count in (1, 2, 2):
        threads(count)
        y = conv3x3(*given, backend="numba")
        results.append((y, *torch.autograd.grad(y.square().sum(), given)))
    for first, second in zip(*results[1:], strict=True):
        assert torch.equal(first, second)
    for first, second in zip(*results[:2], strict=True):
        assert close(first, second)  # the matrix products are torch's


def test_where_it_does_not_serve(monkeypatch):
    """Then torch convolves."""

    def served(*given, backend="numba"):
        y = conv3x3(*given, backend=backend)
        assert close(y, F.conv2d(*given, padding=1))
        return "conv3x3" in str(y.grad_fn.next_functions)

    assert served(*tensors())
    with monkeypatch.context() as patch:
        patch.setattr(numba_cpu, "onednn_convolves_faster", lambda: True)
        assert not served(*tensors())
    assert not served(*tensors(), backend="torch")
    assert not served(*tensors(inputs=24)) and not served(*tensors(outputs=24))
    x, weight, bias = tensors(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv3x3(x, weight, bias, backend="numba")
        assert torch.equal(y, F.conv2d(x, weight, bias, padding=1)) and y.dtype == torch.bfloat16
    for wrong in ([x[:, :16], weight, bias], [x, weight, bias[:16]], [x[:, :, :0], weight, bias]):
        with pytest.raises(RuntimeError):  # torch's own error
            conv3x3(*wrong, backend="numba")
    assert conv3x3(x[0], weight, bias, backend="numba").shape == (48, 5, 4)
    half = [tensor.bfloat16() for tensor in (x, weight, bias)]
    y = conv3x3(*half, backend="numba")
    assert torch.equal(y, F.conv2d(*half, padding=1))


@pytest.mark.parametrize("wrong", ["weight", "bias", "width"])
def test_the_operator_reads_nothing_that_is_not_there(wrong):
    x, weight, bias = torch.randn(2, 5, 4, 32), torch.randn(48, 32, 3, 3), torch.randn(48)
    given = {
        "weight": (x, weight[:, :16], bias),
        "bias": (x, weight, bias[:16]),
        "width": (x[..., :24], weight[:, :24], bias),
    }[wrong]
    with pytest.raises(ValueError, match=r"must .* got"):
        torch.ops.muse_adapter.conv3x3(*given)


def test_it_is_an_operator():
    x, weight, bias = tensors()
    x, grad = x.detach().permute(0, 2, 3, 1).requires_grad_(), torch.randn(2, 5, 4, 48).double()
    own = torch.ops.muse_adapter
    torch.library.opcheck(own.conv3x3.default, (x, weight, bias))
    torch.library.opcheck(own.conv3x3.default, (x, weight, None))
    torch.library.opcheck(own.conv3x3_weight.default, (x, grad.requires_grad_()))


def test_it_compiles_to_one_operator_each_way():
    of, x = Conv3x3(32), torch.randn(2, 32, 5, 4)
    calls = CompileCounterWithBackend("aot_eager")
    with use_backend("numba"):
        compiled = torch.compile(of, fullgraph=True, backend=calls)
        compiled(x).square().sum().backward()
        got = [parameter.grad for parameter in of.parameters()]
        of.zero_grad()
        of(x).square().sum().backward()
    assert all(map(torch.equal, got, (parameter.grad for parameter in of.parameters())))
    (graph,) = calls.graphs
    assert [n for n in graph.graph.nodes if "conv3x3" in str(n.target)]


def test_an_exported_program_takes_any_number_of_maps_and_autocast():
    of, x = Conv3x3(32), torch.randn(2, 32, 5, 4)
    with torch.no_grad(), use_backend("numba"):
        program = torch.export.export(
            of, (x,), dynamic_shapes=({0: torch.export.Dim("maps", min=1, max=64)},)
        ).module()
        more, got = torch.randn(7, 32, 5, 4), of(x)
        assert torch.equal(program(more), of(more))
        with torch.autocast("cpu", torch.bfloat16):  # of which the program knows nothing
            assert torch.equal(program(x), got)


def test_weights_keep_their_names():
    assert [(name, tuple(p.shape)) for name, p in Conv3x3(16).named_parameters()] == [
        ("weight", (16, 16, 3, 3)),
        ("bias", (16,)),
    ]
