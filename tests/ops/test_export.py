"""The head as an exported program, which keeps its backend."""

from __future__ import annotations

import io

import pytest
import torch

from muse_adapter.ops import use_backend
from muse_adapter.ops.backend import by_name
from tests.support.scans import fast_backends
from tests.support.small_heads import every_form, small_head, small_tokens


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


def check_export(mixer, aggregation, mask, depth=2):
    head = small_head(mixer=mixer, aggregation=aggregation, depth=depth).eval()
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


@every_form(fast=1)
def test_exports_with_a_dynamic_batch(mixer, aggregation, mask, depth):
    check_export(mixer, aggregation, mask, depth)


@fast_backends
def test_an_exported_program_keeps_its_backend(backend, monkeypatch):
    with use_backend(backend):
        program = check_export("mamba", "scale_wise", None, depth=1)
    scan = torch.ops.muse_adapter.scan.default
    nodes = [node.args for node in program.graph.nodes if node.target is scan]
    # With numba the layer's mixer is an operator of its own.
    mixers = [node for node in program.graph.nodes if "mamba_inference" in str(node.target)]
    assert len(mixers) == (1 if backend == "numba" else 0)
    assert [args[-2:] for args in nodes] == [(backend, False)] * (1 - len(mixers))
    monkeypatch.setattr(by_name(backend), "unavailable", lambda device=None: "it is away")
    with pytest.raises(RuntimeError, match=f"{backend}.* cannot run: it is away"):
        program.module()(small_tokens())
