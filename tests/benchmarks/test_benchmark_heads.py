"""The heads of `python -m benchmarks`, each against its definition, and the whole evaluation."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks import pair_loop
from benchmarks.baselines import (
    WrittenOutAttention,
    mamba_ssm_kernels,
    own_kernels,
    published_way,
)
from benchmarks.contenders import Contender, contenders
from benchmarks.gate import against_definition
from muse_adapter import MultiScaleMamba
from muse_adapter.ops import backends, selective_scan
from tests.support.small_benchmarks import HERE, ON_CPU, THREADS, small


@pytest.mark.parametrize("name", HERE)
def test_every_head_agrees_with_its_definition(name: str) -> None:
    assert against_definition(HERE[name], small()) is None


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
@pytest.mark.parametrize("name", ["muse-torch", "attention-flash", "attention-plain", "seqTransf"])
def test_heads_agree_in_other_types(name: str, dtype: str) -> None:
    assert against_definition(HERE[name], small(dtype=dtype)) is None


def test_the_published_way_agrees_with_the_definition() -> None:
    def build(dim: int) -> nn.Module:
        return published_way(MultiScaleMamba(dim=dim, init="release"), own_kernels())

    assert against_definition(Contender("", "muse", build), small()) is None


@pytest.mark.parametrize(
    ("function", "wrong", "message"),
    [
        ("muse", "embedding", "the embedding differs by"),
        ("attention", "gradient", "the gradient of layers.0.fc.bias differs by"),
        ("meanP", "parameter", "only one of them has the gradient of extra"),
    ],
)
def test_a_wrong_head_is_not_timed(function: str, wrong: str, message: str) -> None:
    right = {"muse": "muse-torch", "attention": "attention-flash", "meanP": "meanP"}[function]

    def build(dim: int) -> nn.Module:
        module = HERE[right].build(dim)
        if wrong == "embedding":
            module.register_forward_hook(lambda _, __, result: result * 1.001)
        elif wrong == "gradient":
            module.get_parameter("layers.0.fc.bias").register_hook(lambda grad: grad * 1.001)
        else:
            module.register_parameter("extra", nn.Parameter(torch.ones(())))
            module.register_forward_hook(lambda m, __, result: result * m.extra)
        return module

    assert message in (against_definition(Contender("", function, build), small()) or "")


def test_what_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(backends()) <= {name.removeprefix("muse-") for name in ON_CPU}
    for name, reason in {
        "muse-triton": "",
        "muse-mamba_ssm": "GPUs only",
        "muse-published": "GPUs only",
        "attention-cudnn": "does not offer",
    }.items():
        assert isinstance(found := ON_CPU[name], str) and reason in found
    monkeypatch.setattr("muse_adapter.ops.triton_gpu.unavailable", lambda device=None: None)
    assert "interpreter" in contenders("cpu", torch.float32)["muse-triton"]
    monkeypatch.setattr("muse_adapter.ops.mamba_ssm.unavailable", lambda device=None: None)
    monkeypatch.setattr("muse_adapter.ops.mamba_ssm._convolution_error", lambda: None)
    assert isinstance(contenders("cpu", torch.float32)["muse-published"], Contender)
    exact = contenders("cpu", torch.float64)
    assert exact["muse-mamba_ssm"] == exact["muse-published"] == "mamba-ssm has no float64 kernels"


def test_mixers_for_benchmarks_refuse_masks() -> None:
    mixer = published_way(MultiScaleMamba(dim=32), own_kernels()).layers[0].mixer
    for refusing in (mixer, WrittenOutAttention(32, head_dim=32)):
        with pytest.raises(ValueError, match="no frame mask"):
            refusing(torch.randn(1, 4, 32), torch.tensor([3]))


def test_what_mamba_ssm_is_called_with(monkeypatch: pytest.MonkeyPatch) -> None:
    def selective_scan_fn(u, delta, A, B, C, D, z, delta_bias, delta_softplus):
        for tensor in (u, delta, A, B, C, D, z, delta_bias):
            assert tensor.is_contiguous()
        assert B.shape == C.shape == (2, 16, 9) and u.shape == z.shape == (2, 32, 9)
        return selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus)

    def causal_conv1d_fn(x, weight, bias, activation):
        assert weight.shape == (32, 4) and activation == "silu" and x.is_contiguous()
        y = F.conv1d(x, weight.unsqueeze(1), bias, padding=3, groups=32)[..., : x.shape[2]]
        return F.silu(y)

    for name, attributes in {
        "causal_conv1d": {"causal_conv1d_fn": causal_conv1d_fn},
        "mamba_ssm": {},
        "mamba_ssm.ops": {},
        "mamba_ssm.ops.selective_scan_interface": {"selective_scan_fn": selective_scan_fn},
    }.items():
        module = ModuleType(name)
        vars(module).update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    head = MultiScaleMamba(dim=32, init="release")
    tokens = torch.randn(2, 9, 32)
    expected = head.layers[0].mixer(tokens)
    got = published_way(head, mamba_ssm_kernels()).layers[0].mixer(tokens)
    assert (got - expected).abs().max() < 1e-5 * expected.abs().max()


def test_pair_loop() -> None:
    row = pair_loop.measure_pairs(small(pairs=5, pair_batch=2, threads=int(THREADS)))
    measured, computed = row["measured"], {part["size"]: part for part in row["computed"]}
    assert measured["size"] == 5 and measured["head_runs"] == {"ours": 3, "published": 9}
    assert 0 < measured["seconds"]["ours"] < measured["seconds"]["published"]
    assert computed.keys() == {5, 200, 1000}
    assert computed[1000]["head_runs"] == {"ours": 500, "published": 250_000}
    head, product = row["head_run_s"][1], row["product_s"][1]
    assert computed[200]["seconds"]["ours"] == pytest.approx(100 * head + 10_000 * product)
    assert computed[200]["seconds"]["published"] == pytest.approx(10_000 * (head + product))


def test_the_ways_of_evaluating_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pair_loop.Evaluation.ours
    monkeypatch.setattr(pair_loop.Evaluation, "ours", lambda self: original(self) * 1.01)
    with pytest.raises(RuntimeError, match="the similarity differs by"):
        pair_loop.measure_pairs(small(threads=int(THREADS)))
