"""The scan as an operator: torch.compile, torch.export, autocast, determinism, no waiting."""

from __future__ import annotations

import io
import itertools
import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from muse_adapter import MultiScaleMamba
from muse_adapter.config import AGGREGATIONS, MIXERS
from muse_adapter.ops import (
    dispatch,
    selective_scan,
    use_backend,
)

MASK = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0]], dtype=torch.bool)
# Every mixer in every aggregation with a mask; without one, where fewer operations are traced,
# every mixer once and every aggregation once.
every_form = pytest.mark.parametrize(
    ("mixer", "aggregation", "mask"),
    [
        *(
            pytest.param(mixer, aggregation, MASK, id=f"{mixer}-{aggregation}-masked")
            for mixer, aggregation in itertools.product(MIXERS, AGGREGATIONS)
        ),
        *(
            pytest.param(mixer, aggregation, None, id=f"{mixer}-{aggregation}-whole")
            for mixer, aggregation in zip(MIXERS, itertools.cycle(AGGREGATIONS))
        ),
    ],
)
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
# The same operations in another grouping; in bfloat16 each rounds at 4e-3.
BOUND = {torch.float32: 1e-5, torch.bfloat16: 3e-2}

# Backends that run in the operator; `reference` is traced as it stands.
OPERATORS = [name for name in dispatch.MODULES if name != "reference"]
operators = pytest.mark.parametrize("backend", OPERATORS, indirect=True)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """No test meets the graphs of another, nor their number."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def small_head(**fields):
    """Two layers, the last of which only reads out; random everywhere, zero nowhere."""
    fields = {"depth": 2, "d_state": 4, "scales": (1.0,), "dropout": 0.0, **fields}
    head = MultiScaleMamba(dim=16, **fields)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return head


def small_tokens(batch=3, frames=3, **options):
    return torch.randn(batch, frames, 5, 16, **options)  # a class token and 2x2 patches


def embed(function, head, tokens, mask, autocast=False):
    """Embedding, then the gradients of the tokens and of all parameters."""
    tokens = tokens.detach().clone().requires_grad_()
    with torch.autocast(tokens.device.type, torch.bfloat16, enabled=autocast):
        video = function(tokens, mask)
    loss = (video.float() * torch.arange(16.0, device=video.device)).sum()
    names = ["tokens", *(name for name, _ in head.named_parameters())]
    wanted = [tokens, *head.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
    return {"video": video.detach(), **dict(zip(names, gradients, strict=True))}


def agree(got, expected, bound=BOUND[torch.float32]):
    for name, value in expected.items():
        assert (got[name] is None) == (value is None), name
        if value is not None:
            error = (got[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
            assert error <= bound, f"{name} is off by {error:.1e}"  # NaN fails too


def check_compiled(mixer, aggregation, mask, backend="aot_eager", **fields):
    head = small_head(mixer=mixer, aggregation=aggregation, **fields)
    compiled = torch.compile(head, fullgraph=True, backend=backend)
    tokens = small_tokens()
    agree(embed(compiled, head, tokens, mask), embed(head, head, tokens, mask))


# Every mixer and every aggregation, with and without a mask; more forms are a slow test.
FAST = [
    *((mixer, "scale_wise", "masked") for mixer in MIXERS),
    *(("bimamba", aggregation, "masked") for aggregation in AGGREGATIONS[1:]),
    ("bimamba", "scale_wise", "whole"),
]


@pytest.mark.parametrize(("mixer", "aggregation", "masked"), FAST)
def test_compiles_as_one_graph(mixer, aggregation, masked):
    check_compiled(mixer, aggregation, MASK if masked == "masked" else None)


@pytest.mark.slow
@every_form
def test_compiles_in_all_forms(mixer, aggregation, mask):
    check_compiled(mixer, aggregation, mask, scales=(0.5, 1.0, 2.0))


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a compiler")
# What inductor imports, torch.utils.mkldnn, defines its modules by what torch.jit deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("mixer", MIXERS)
def test_compiles_with_inductor(mixer):
    check_compiled(mixer, "scale_wise", MASK, backend="inductor")


def test_compiles_on_every_backend(backend):
    with use_backend(backend):
        check_compiled("bimamba", "scale_wise", MASK, depth=1)


def test_the_scan_itself_compiles(backend):
    wanted = {
        "u": torch.randn(2, 6, 9),
        "delta": torch.randn(2, 6, 9),
        "A": -torch.rand(6, 3),
        "B": torch.randn(6, 3),
        "C": torch.randn(2, 2, 3, 9),
        "D": torch.randn(6),
        "z": torch.randn(2, 6, 9),
        "delta_bias": torch.randn(6),
    }
    wanted = {name: value.requires_grad_() for name, value in wanted.items()}

    def scan(reverse):
        y, state = selective_scan(
            **wanted, delta_softplus=True, return_last_state=True, reverse=reverse, backend=backend
        )
        return y.square().sum() + state.square().sum()

    compiled = torch.compile(scan, fullgraph=True, backend="aot_eager")
    for reverse in (False, True):
        got, expected = (
            torch.autograd.grad(function(reverse), list(wanted.values()))
            for function in (compiled, scan)
        )
        agree(dict(zip(wanted, got, strict=True)), dict(zip(wanted, expected, strict=True)))


def test_another_choice_of_the_backend_compiles_anew():
    """A graph holds the backend it was traced with, and is not used where another was chosen."""
    graphs = CompileCounterWithBackend("aot_eager")
    head, tokens = small_head(depth=1, mixer="mamba").eval(), small_tokens()
    compiled = torch.compile(head, fullgraph=True, backend=graphs)
    counts = []
    with torch.no_grad():
        for name in ("torch", "reference", "torch", "reference"):
            with use_backend(name):
                compiled(tokens)
            counts.append(graphs.frame_count)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(dispatch.ENVIRONMENT, "reference")  # read when a graph is made, only then
            with use_backend("torch"):
                compiled(tokens)
    assert counts == [1, 2, 2, 2] and graphs.frame_count == 2
    scan = torch.ops.muse_adapter.scan
    nodes = [
        [n.args for n in g.graph.nodes if n.target in (scan, scan.default)] for g in graphs.graphs
    ]
    assert [len(found) for found in nodes] == [1, 0]  # the definition is traced step by step
    *_, backend, keep = nodes[0][0]
    assert (backend, keep) == ("torch", False)  # nothing is kept for a backward pass


def test_an_unknown_backend_is_refused_while_compiling():
    head, tokens = small_head(depth=1), small_tokens()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(dispatch.ENVIRONMENT, "fastest")
        with pytest.raises(Exception, match="unknown backend 'fastest'"):
            compiled(tokens)


def test_compiles_with_checkpointing():
    head, tokens = small_head(), small_tokens()
    expected = embed(head, head, tokens, MASK)
    head.set_grad_checkpointing()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    agree(embed(compiled, head, tokens, MASK), expected)


@operators
def test_checkpointing_recomputes_on_the_backend_of_the_forward_pass(backend, monkeypatch):
    head, tokens = small_head(depth=1, mixer="mamba"), small_tokens()
    head.set_grad_checkpointing()
    ran = []
    for name in dispatch.MODULES:
        module = dispatch._module(name)
        for part in ("scan_forward", "scan_backward"):
            if hasattr(module, part):
                original = getattr(module, part)
                monkeypatch.setattr(
                    module,
                    part,
                    lambda *a, _f=original, _n=(name, part), **k: ran.append(_n) or _f(*a, **k),
                )
    with use_backend(backend):
        video = head(tokens)
    video.sum().backward()
    assert ran == [(backend, "scan_forward")] * 2 + [(backend, "scan_backward")]


def test_compiles_under_autocast():
    head, tokens = small_head(depth=1), small_tokens()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    got = embed(compiled, head, tokens, MASK, autocast=True)
    agree(got, embed(head, head, tokens, MASK, autocast=True), BOUND[torch.bfloat16])


def test_deterministic_algorithms():
    head, tokens = small_head(depth=1), small_tokens()
    expected = embed(head, head, tokens, MASK)
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (embed(head, head, tokens, MASK) for _ in range(2))
        compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
        agree(embed(compiled, head, tokens, MASK), expected)
    finally:
        torch.use_deterministic_algorithms(before)
    agree(first, second, 0.0)
    agree(first, expected)


def export(head, tokens, mask):
    """The head as an exported program of a dynamic batch, saved and loaded."""
    batch = torch.export.Dim("batch", min=1, max=64)
    inputs = (tokens,) if mask is None else (tokens, mask)
    with torch.no_grad():
        program = torch.export.export(
            head, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs)
        )
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    return torch.export.load(file)


def check_export(mixer, aggregation, mask):
    head = small_head(mixer=mixer, aggregation=aggregation).eval()
    # More tokens than channels and fewer: two ways to the output map, and one graph.
    program = export(head, small_tokens(), mask)
    for batch in (1, 2, 40):
        inputs = [small_tokens(batch)]
        if mask is not None:
            inputs.append(torch.rand(batch, 3) < 0.7)
            inputs[1][:, 1] = True
        with torch.no_grad():
            got, expected = program.module()(*inputs), head(*inputs)
        assert (got - expected).abs().max() < 1e-6
    return program


def test_exports_with_a_dynamic_batch():
    check_export("bimamba", "scale_wise", MASK)


@pytest.mark.slow
@every_form
def test_exports_in_all_forms(mixer, aggregation, mask):
    check_export(mixer, aggregation, mask)


@operators
def test_an_exported_program_keeps_its_backend(backend, monkeypatch):
    with use_backend(backend):
        program = check_export("mamba", "scale_wise", None)
    scan = torch.ops.muse_adapter.scan.default
    nodes = [node.args for node in program.graph.nodes if node.target is scan]
    # With numba both layers' mixers are an operator of their own.
    mixers = [node for node in program.graph.nodes if "mamba_inference" in str(node.target)]
    assert len(mixers) == (2 if backend == "numba" else 0)
    assert [args[-2:] for args in nodes] == [(backend, False)] * (2 - len(mixers))
    module = dispatch._module(backend)
    monkeypatch.setattr(module, "unavailable", lambda device=None: "it is away")
    with pytest.raises(RuntimeError, match=f"{backend}.* cannot run: it is away"):
        program.module()(small_tokens())


def operator_inputs(dtype=torch.float32, *, gradient=True, lengths=True, optional=True):
    """What stands before the backend's name; B and C of other shapes, two chunks of time."""

    def normal(*shape):
        return torch.randn(shape, dtype=dtype).requires_grad_(gradient)

    return [
        normal(2, 40, 6),
        normal(2, 40, 6),
        (-torch.rand(6, 3)).requires_grad_(gradient),
        normal(2, 40, 2, 3),
        normal(1, 1, 6, 3),
        normal(6) if optional else None,
        normal(6) if optional else None,
        torch.tensor([40, 33]) if lengths else None,
        True,
    ]


@operators
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize(
    "options",
    [{}, {"lengths": False, "optional": False}, {"dtype": torch.bfloat16}, {"gradient": False}],
    ids=["all", "least", "bfloat16", "inference"],
)
def test_opcheck_of_the_scan(backend, options, reverse):
    inputs = (*operator_inputs(**options), reverse, backend, options.get("gradient", True))
    torch.library.opcheck(torch.ops.muse_adapter.scan.default, inputs)


@operators
@pytest.mark.parametrize("given", ["both", "y", "state"])
def test_opcheck_of_the_backward_pass(backend, given):
    inputs = (*operator_inputs(gradient=False), False, backend)
    y, state, kept = torch.ops.muse_adapter.scan(*inputs, True)
    gradients = [
        torch.randn_like(value) if given in ("both", name) else None
        for name, value in (("y", y), ("state", state))
    ]
    operator = torch.ops.muse_adapter.scan_backward.default
    torch.library.opcheck(operator, (*gradients, kept, *inputs))


def test_no_gradient_without_what_the_backward_pass_needs():
    y, _, kept = torch.ops.muse_adapter.scan(*operator_inputs(), False, "torch", False)
    assert kept.numel() == 0
    with pytest.raises(RuntimeError, match="keep=True"):
        y.sum().backward()


def test_second_derivatives_of_the_definition():
    shapes = {"u": (1, 2, 3), "delta": (1, 2, 3), "B": (1, 2, 3), "C": (1, 2, 3)}
    inputs = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    A = -torch.rand(2, 2, dtype=torch.float64)
    inputs = [value.requires_grad_() for value in inputs.values()]

    def scan(u, delta, B, C):
        return selective_scan(u, delta, A, B, C, delta_softplus=True, backend="reference")

    assert torch.autograd.gradgradcheck(scan, inputs)


@operators
def test_second_derivatives_through_the_head_are_refused_by_name(backend):
    head, tokens = small_head(depth=1), small_tokens().requires_grad_()
    with use_backend(backend):
        (gradient,) = torch.autograd.grad(head(tokens).sum(), tokens, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{backend} backend .* no second derivative"):
        gradient.square().sum().backward()


def test_eager_calls_do_not_import_the_compiler(run_python):
    """It takes a second, and whoever never compiles never needs it."""
    done = run_python(
        """
        import sys, torch
        from muse_adapter.ops import selective_scan
        u = torch.randn(1, 4, 9, requires_grad=True)
        B = torch.randn(1, 2, 9)
        selective_scan(u, u, -torch.ones(4, 2), B, B, backend="torch").sum().backward()
        print("torch._dynamo" in sys.modules)
        """
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("mixer", MIXERS)
def test_no_value_is_asked_for(mixer):
    """Meta tensors have none: whatever would wait for a GPU raises here."""
    head = small_head(mixer=mixer, scales=(0.5, 1.0, 2.0)).to("meta")
    tokens = small_tokens(device="meta", requires_grad=True)
    mask = MASK.to("meta")
    with pytest.raises(RuntimeError):
        bool(mask.any())
    head(tokens, mask).sum().backward()
    assert tokens.grad.shape == tokens.shape
    with torch.no_grad():
        assert head.eval()(tokens, mask).shape == (3, 16)


def test_the_torch_backend_asks_for_no_value():
    inputs = [
        value.detach().to("meta") if isinstance(value, torch.Tensor) else value
        for value in operator_inputs()
    ]
    *tensors, lengths, softplus = inputs
    flags = {"delta_softplus": softplus, "reverse": True, "lengths": lengths}
    module = dispatch._module("torch")
    kept = torch.empty(module.kept_shape(2, 40, 6, 3), device="meta")
    y, state = module.scan_forward(*tensors, **flags, kept=kept)
    gradients = module.scan_backward(y, state, kept, *tensors, **flags)
    assert [g.shape for g in gradients] == [t.shape for t in tensors]


def gpu_head(**fields):
    head = small_head(scales=(0.5, 1.0, 2.0), **fields).cuda()
    return head, small_tokens(device="cuda"), MASK.cuda()


@gpu
@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "autocast"])
def test_gpu_no_synchronisation(mixer, autocast):
    head, tokens, mask = gpu_head(mixer=mixer)
    embed(head, head, tokens, mask, autocast)  # libraries load, kernels compile
    tokens.requires_grad_()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
            video = head(tokens, mask)
        video.float().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert video.isfinite().all()


@gpu
@pytest.mark.parametrize("mixer", MIXERS)
def test_gpu_graphs(mixer):
    head, tokens, mask = gpu_head(mixer=mixer)
    tokens.requires_grad_()

    def step():
        video = head(tokens, mask)
        return video, *torch.autograd.grad(video.square().sum() + video.sum(), tokens)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        replayed = step()
    with torch.no_grad():
        tokens.copy_(torch.randn_like(tokens))
    graph.replay()
    for got, expected in zip(replayed, step(), strict=True):
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()


@gpu
@pytest.mark.parametrize("mixer", MIXERS)
def test_gpu_compiled(mixer):
    head, tokens, mask = gpu_head(mixer=mixer)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    agree(embed(compiled, head, tokens, mask), embed(head, head, tokens, mask), 1e-4)


@gpu
def test_gpu_deterministic(run_python):
    done = run_python(
        """
        import torch
        from muse_adapter import MultiScaleMamba
        torch.use_deterministic_algorithms(True)
        torch.manual_seed(0)
        head = MultiScaleMamba(dim=16, depth=2, init="release", dropout=0.0).cuda()
        tokens = torch.randn(2, 3, 50, 16, device="cuda", requires_grad=True)
        mask = torch.tensor([[1, 0, 1], [1, 1, 1]], device="cuda")
        runs = []
        for _ in range(2):
            loss = head(tokens, mask).square().sum() + head(tokens, mask)[:, 0].sum()
            wanted = [tokens, *head.parameters()]
            runs.append(torch.autograd.grad(loss, wanted, allow_unused=True))
        print(all(a is b or torch.equal(a, b) for a, b in zip(*runs)))
        """,
        CUBLAS_WORKSPACE_CONFIG=":4096:8",
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "True"


@operators
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # torch's own
def test_derivatives_in_forward_mode_are_refused_by_name(backend):
    """Where no tensor wants a gradient autograd does not look, and the tangent would be 0."""
    u, A, B = torch.randn(1, 16, 5), -torch.rand(16, 3), torch.randn(1, 3, 5)

    def scan(u):
        return selective_scan(u, u, A, B, B, backend=backend)

    with pytest.raises(RuntimeError, match="no derivative in forward mode"):
        torch.func.jvp(scan, (u,), (torch.randn_like(u),))
