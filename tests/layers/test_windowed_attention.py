"""Windowed attention in blocks against its definition: values, all gradients, masks, memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from muse_adapter.layers import gaussian
from muse_adapter.layers.gaussian import WIDTHS, GaussianBlock, WindowedAttention, gaussian_window

B, L, D, HEADS = 3, 23, 8, 2
LENGTHS = torch.tensor([23, 9, 1])
KEEP = torch.arange(L) < LENGTHS[:, None]
BLOCKS = {
    # name: most scores of a block, fewest rows, scores kept for the backward pass
    "rows of one video": (HEADS * L * 5, 1, 0),
    "one video": (HEADS * L * L, 1, 0),
    "two videos": (2 * HEADS * L * L + 5, 1, 0),
    "at least four rows": (1, 4, 0),
}


def definition(layer: WindowedAttention, x: Tensor, keep: Tensor | None) -> Tensor:
    """Attention by its formula, with all scores at once."""
    q, k, v = (
        linear(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
        for linear in (layer.query, layer.key, layer.value)
    )
    scores = q @ k.mT / (D / HEADS) ** 0.5
    if layer.width is not None:
        lengths = torch.tensor([L]) if keep is None else keep.sum(1)
        scores = scores * gaussian_window(lengths, L, layer.width, dtype=x.dtype)[:, None]
    if keep is not None:
        scores = scores.masked_fill(~keep[:, None, None], -torch.inf)
    y = layer.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return layer.norm(x + y)


def small_blocks(monkeypatch: pytest.MonkeyPatch, block: int, rows: int, kept: int) -> None:
    monkeypatch.setattr(gaussian, "_CPU_BLOCK", block)
    monkeypatch.setattr(gaussian, "_MIN_ROWS", rows)
    monkeypatch.setattr(gaussian, "_KEPT", kept)


@pytest.mark.parametrize("sizes", BLOCKS.values(), ids=BLOCKS)
@pytest.mark.parametrize("keep", [None, KEEP], ids=["all valid", "padded"])
@pytest.mark.parametrize("width", WIDTHS)
def test_blocks_equal_the_definition(
    monkeypatch: pytest.MonkeyPatch,
    width: float | None,
    keep: Tensor | None,
    sizes: tuple[int, ...],
) -> None:
    small_blocks(monkeypatch, *sizes)
    layer = WindowedAttention(D, HEADS, width=width).double()
    x = torch.randn(B, L, D, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    expected = definition(layer, x, keep)
    factors = torch.randn_like(expected)
    with torch.no_grad():
        assert (layer(x, keep) - expected).abs().max() < 1e-13
    got = layer(x, keep)
    assert (got - expected).abs().max() < 1e-13
    for ours, theirs in zip(
        torch.autograd.grad((got * factors).sum(), leaves),
        torch.autograd.grad((expected * factors).sum(), leaves),
        strict=True,
    ):
        # Of a key's bias the gradient is 0, but for rounding.
        assert (ours - theirs).abs().max() < 1e-12 * theirs.abs().max().clamp(min=1)


@torch.no_grad()
def test_blocks_of_a_head_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores are multiplied and exponentiated in float32: what is lost is that of the products."""
    layer = WindowedAttention(D, HEADS, width=0.5).bfloat16()
    q, k, v = torch.randn(3, B, HEADS, L, D // HEADS, dtype=torch.bfloat16)
    expected = layer._attend(q.double(), k.double(), v.double(), KEEP, slice(None))
    small_blocks(monkeypatch, 1, 4, 0)
    got = layer._in_blocks(q, k, v, KEEP)
    assert got.dtype == torch.bfloat16
    assert (got - expected).abs().max() < 2e-2


@torch.no_grad()
def test_blocks_of_a_head_drop_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1, 4, 0)
    layer = WindowedAttention(D, HEADS, width=0.5, dropout=0.5).double().train()
    q, k = torch.randn(2, B, HEADS, L, D // HEADS, dtype=torch.float64)
    y = layer._in_blocks(q, k, torch.ones_like(q), None)  # sums of the weights that are left
    assert y.std() > 0.1 and (y.mean() - 1).abs() < 0.1


def test_recomputed_blocks_drop_the_same_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss is linear in the values, so it equals values times its gradient by them."""
    small_blocks(monkeypatch, 1, 4, 0)
    layer = WindowedAttention(D, HEADS, width=0.5, dropout=0.5).double().train()
    q, k, v = torch.randn(3, B, HEADS, L, D // HEADS, dtype=torch.float64)
    v.requires_grad_()
    y = layer._in_blocks(q, k, v, None)
    loss = (y * torch.randn_like(y)).sum()
    (gradient,) = torch.autograd.grad(loss, v)
    torch.testing.assert_close((v * gradient).sum(), loss)
    assert (layer._in_blocks(q, k, v, None) - y).abs().max() > 0.1, "dropout is random"


@pytest.mark.parametrize("kept", [2**25, 0], ids=["scores kept", "recomputed"])
@pytest.mark.parametrize("width", [None, 0.5])
def test_second_derivatives(
    monkeypatch: pytest.MonkeyPatch, width: float | None, kept: int
) -> None:
    small_blocks(monkeypatch, 1, 4, kept)
    layer = WindowedAttention(D, HEADS, width=width).double()
    x = torch.randn(B, L, D, dtype=torch.float64, requires_grad=True)
    leaves = [x, *layer.parameters()]
    factors, cotangent = torch.randn(2, B, L, D, dtype=torch.float64)
    found = []
    for y in (layer(x, KEEP), definition(layer, x, KEEP)):
        (first,) = torch.autograd.grad((y * factors).sum(), x, create_graph=True)
        wanted = (first * cotangent).sum()
        found.append(torch.autograd.grad(wanted, leaves, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() < 1e-11 * theirs.abs().max().clamp(min=1)


def test_long_sequences_have_gradients_of_torch_func(monkeypatch: pytest.MonkeyPatch) -> None:
    small_blocks(monkeypatch, 1, 4, 0)
    layer = WindowedAttention(D, HEADS, width=0.5).double()
    x = torch.randn(B, L, D, dtype=torch.float64)
    got = torch.func.grad(lambda x: layer(x, KEEP).square().sum())(x)
    x.requires_grad_()
    (expected,) = torch.autograd.grad(definition(layer, x, KEEP).square().sum(), x)
    assert (got - expected).abs().max() < 1e-12


def test_gradients_of_a_long_sequence_take_no_square(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept between the passes is counted: it may grow with L, not with L^2."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    small_blocks(monkeypatch, 2**12, 1, 0)
    block = GaussianBlock(D, HEADS).train()
    x = torch.randn(1, 300, D, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        block(x).sum()
    assert max(kept) <= 4 * 300 * D < 300 * 300
