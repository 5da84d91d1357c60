"""The layers of MamFusion against the golden files: values and all gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.layers.block import PostNormLayer
from muse_adapter.layers.gaussian import GaussianBlock, gaussian_window
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.pool import AttentionPool
from muse_adapter.layers.segments import segment_means
from muse_adapter.ops import use_backend
from tests.support.golden import Golden

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
ATTENTION = {
    "self.query": "query",
    "self.key": "key",
    "self.value": "value",
    "output.dense": "out",
    "output.LayerNorm": "norm",
}


def gaussian_names() -> dict[str, str]:
    return {
        f"attn{i}.{official}.{kind}": f"layers.{i}.{ours}.{kind}"
        for i in range(4)
        for official, ours in ATTENTION.items()
        for kind in ("weight", "bias")
    }


def load(module: nn.Module, file: Golden, names: dict[str, str], dtype: torch.dtype) -> nn.Module:
    weights = file.weights(dtype)
    module.to(dtype).load_state_dict({names.get(n, n): value for n, value in weights.items()})
    return module


def check_gradients(file: Golden, module: nn.Module, names: dict[str, str], x: Tensor) -> None:
    parameters, keys = dict(module.named_parameters()), file.keys("grad.")
    assert len(keys) >= 2
    for key in keys:
        name = key.removeprefix("grad.")
        leaf = x if name == "in.x" else parameters[names.get(name, name)]
        file.check(key, leaf.grad)


def full_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay windows over the padded length, as published."""

    def window(lengths: Tensor, size: int, width: float, **options: Any) -> Tensor:
        return gaussian_window(lengths.new_full((1,), size), size, width, **options)

    monkeypatch.setattr("muse_adapter.layers.gaussian.gaussian_window", window)


@DTYPES
@pytest.mark.parametrize("width", ["0.5", "1.0", "5.0"])
@pytest.mark.parametrize("size", [7, 32])
def test_windows(golden, dtype: torch.dtype, width: str, size: int) -> None:
    got = gaussian_window(torch.tensor([size]), size, float(width), dtype=dtype)
    golden("mamfusion_gmm").check(f"out.window.{width}.{size}", got[0])


@DTYPES
def test_gaussian_block(golden, dtype: torch.dtype) -> None:
    file = golden("mamfusion_gmm")
    block = load(GaussianBlock(16, 2), file, gaussian_names(), dtype)
    x = file.tensor("in.x", dtype)
    file.check("out.block", block(x))
    for i in range(4):
        file.check(f"out.attn{i}", block.layers[i](x))


@DTYPES
def test_gaussian_block_with_padding(golden, dtype: torch.dtype, monkeypatch) -> None:
    full_windows(monkeypatch)
    file = golden("mamfusion_gmm")
    block = load(GaussianBlock(16, 2), file, gaussian_names(), dtype)
    x, mask = file.tensor("in.x", dtype).requires_grad_(), file.tensor("in.mask").bool()
    got = block(x, mask.sum(1))
    file.check("out.masked.block", got)
    for i in range(4):
        file.check(f"out.masked.attn{i}", block.layers[i](x, mask))
    (got * file.tensor("cot.masked.block", dtype)).sum().backward()
    check_gradients(file, block, gaussian_names(), x)


@DTYPES
def test_mamba_branch(golden, dtype: torch.dtype, backend: str) -> None:
    file = golden("mamfusion_mamba")
    layer = PostNormLayer(16, BiMamba(16, expand=2, bidirectional=False))
    names = {name: name if name.startswith("norm.") else f"mixer.{name}" for name in file.weights()}
    load(layer, file, names, dtype)
    x = file.tensor("in.x", dtype).requires_grad_()
    with use_backend(backend):
        file.check("out.mamba", layer.mixer(x))
        got = layer(x)
        (got * file.tensor("cot.branch", dtype)).sum().backward()
    file.check("out.branch", got)
    check_gradients(file, layer, names, x)


@DTYPES
def test_attention_pool(golden, dtype: torch.dtype) -> None:
    file = golden("mamfusion_pool")
    names = {"modular_vector_mapping.weight": "score.weight"}
    pool = load(AttentionPool(16), file, names, dtype)
    x = file.tensor("in.x", dtype).requires_grad_()
    got = pool(x, file.tensor("in.mask").bool())
    file.check("out.pooled", got)
    (got * file.tensor("cot.pooled", dtype)).sum().backward()
    check_gradients(file, pool, names, x)


@DTYPES
def test_segments(golden, dtype: torch.dtype) -> None:
    file = golden("mamfusion_segments")
    keys = file.keys("in.")
    assert len(keys) == 5
    for key in keys:
        frames, count = file.tensor(key, dtype), int(key.split(".")[-1])
        got = segment_means(frames[None], torch.tensor([len(frames)]), count)
        file.check(f"out.{key[3:]}", got[0])
