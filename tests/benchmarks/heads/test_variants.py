"""The heads of `python -m benchmarks`: each against its definition, and why one cannot run."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.heads.baselines import (
    WrittenOutAttention,
    mamba_ssm_kernels,
    own_kernels,
    published_way,
)
from benchmarks.heads.definition import against_definition
from benchmarks.heads.variants import Variant, variants
from muse_adapter import MultiScaleMamba
from muse_adapter.ops import backends, selective_scan
from muse_adapter.ops.mamba_ssm import MAMBA_SSM
from muse_adapter.ops.triton_gpu import TRITON
from tests.support.small_benchmarks import HERE, ON_CPU, small


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

    assert against_definition(Variant("", "muse", build), small()) is None


def test_what_cannot_run_here_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(backends()) <= {name.removeprefix("muse-") for name in ON_CPU}
    for name, reason in {
        "muse-triton": "",
        "muse-mamba_ssm": "GPUs only",
        "muse-published": "GPUs only",
        "attention-cudnn": "does not offer",
    }.items():
        assert isinstance(found := ON_CPU[name], str) and reason in found
    for backend in (TRITON, MAMBA_SSM):
        monkeypatch.setattr(backend, "unavailable", lambda device=None: None)
    assert "interpreter" in variants("cpu", torch.float32)["muse-triton"]
    monkeypatch.setattr("muse_adapter.ops.mamba_ssm._convolution_error", lambda: None)
    assert isinstance(variants("cpu", torch.float32)["muse-published"], Variant)
    exact = variants("cpu", torch.float64)
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
