"""The head under torch.compile: one graph, on every backend, with its choice as a constant."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from muse_adapter.ops import selective_scan, use_backend
from muse_adapter.ops.choice import BACKENDS, ENVIRONMENT
from tests.support.scans import FAST, fast_backends
from tests.support.small_heads import (
    BOUND,
    MASK,
    agree,
    embed,
    every_form,
    small_head,
    small_tokens,
)


@pytest.fixture(autouse=True)
def nothing_compiled():
    """No test meets the graphs of another, nor their number."""
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def check_compiled(mixer, aggregation, mask, backend="aot_eager", **fields):
    head = small_head(mixer=mixer, aggregation=aggregation, **fields)
    compiled = torch.compile(head, fullgraph=True, backend=backend)
    tokens = small_tokens(frames=3 if mask is None else mask.shape[1])
    agree(embed(compiled, head, tokens, mask), embed(head, head, tokens, mask))


# The fast suite compiles another mixer here, and `bimamba` below.
def test_compiles_as_one_graph():
    check_compiled("attention", "spatial_wise", MASK, depth=1)


@every_form(fast=0)
def test_compiles_in_all_forms(mixer, aggregation, mask, depth):
    # A mixer sees one sequence, whatever it was made of: several scales once in each aggregation.
    several = mixer == "conv" or aggregation == "spatial_wise"
    scales = (0.5, 1.0, 2.0) if several else (1.0,)
    check_compiled(mixer, aggregation, mask, scales=scales, depth=depth)


@pytest.mark.slow(seconds=35)
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a compiler")
# What inductor imports, torch.utils.mkldnn, defines its modules by what torch.jit deprecates.
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method. is deprecated:DeprecationWarning")
# The scan and the convolution are operators, which inductor calls: in `bimamba` both of them. A
# layer before the one that reads out is compiled once: each costs seconds of a C++ compiler.
@pytest.mark.parametrize(("mixer", "depth"), [("bimamba", 2), ("attention", 1)])
def test_compiles_with_inductor(mixer, depth):
    check_compiled(mixer, "scale_wise", MASK, backend="inductor", depth=depth)


@pytest.mark.parametrize(
    "backend",
    [FAST[0], *(pytest.param(name, marks=pytest.mark.slow) for name in FAST[1:])],
    indirect=True,
)
def test_compiles_on_every_backend(backend):
    with use_backend(backend):
        check_compiled("bimamba", "scale_wise", MASK, depth=1)


def test_the_scan_itself_compiles(backend):
    length = 5  # the definition is traced step by step
    wanted = {
        "u": torch.randn(2, 6, length),
        "delta": torch.randn(2, 6, length),
        "A": -torch.rand(6, 3),
        "B": torch.randn(6, 3),
        "C": torch.randn(2, 2, 3, length),
        "D": torch.randn(6),
        "z": torch.randn(2, 6, length),
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


@pytest.mark.slow
def test_another_choice_of_the_backend_compiles_anew():
    """A graph holds the backend it was traced with, and is not used where another was chosen."""
    graphs = CompileCounterWithBackend("eager")
    # One frame: the definition is traced step by step.
    head, tokens = small_head(depth=1, mixer="mamba").eval(), small_tokens(frames=1)
    compiled = torch.compile(head, fullgraph=True, backend=graphs)
    counts = []
    with torch.no_grad():
        for name in ("torch", "reference", "torch", "reference"):
            with use_backend(name):
                compiled(tokens)
            counts.append(graphs.frame_count)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(ENVIRONMENT, "reference")  # read when a graph is made, only then
            with use_backend("torch"):
                compiled(tokens)
    assert counts == [1, 2, 2, 2] and graphs.frame_count == 2
    scan = torch.ops.muse_adapter.scan
    nodes = [
        [n.args for n in g.graph.nodes if n.target in (scan, scan.default)] for g in graphs.graphs
    ]
    assert [len(found) for found in nodes] == [1, 0]  # the definition is traced step by step
    *_, backend, save = nodes[0][0]
    assert (backend, save) == ("torch", False)  # nothing is saved for a backward pass


def test_an_unknown_backend_is_refused_while_compiling():
    head, tokens = small_head(depth=1), small_tokens()
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(ENVIRONMENT, "fastest")
        with pytest.raises(Exception, match="unknown backend 'fastest'"):
            compiled(tokens)


@pytest.mark.slow
def test_compiles_with_checkpointing():
    head, tokens = small_head(depth=1, mixer="mamba"), small_tokens()
    expected = embed(head, head, tokens, MASK)
    head.set_grad_checkpointing()
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")
    agree(embed(compiled, head, tokens, MASK), expected)


@fast_backends
def test_checkpointing_recomputes_on_the_backend_of_the_forward_pass(backend, monkeypatch):
    head, tokens = small_head(depth=1, mixer="mamba"), small_tokens()
    head.set_grad_checkpointing()
    ran = []
    for name, module in BACKENDS.items():
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


@pytest.mark.slow
def test_compiles_under_autocast():
    head, tokens = small_head(depth=1, mixer="mamba"), small_tokens()
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
