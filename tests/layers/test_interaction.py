"""Text gate, token similarities and late interaction against their definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muse_adapter.layers import pairs
from muse_adapter.layers.interaction import (
    TextGatedInteraction,
    late_interaction,
    token_similarity,
)
from muse_adapter.layers.pairs import unit
from tests.support import token_scores
from tests.support.token_scores import MASK, A, B, D, N, leaves
from tests.support.tolerances import assert_close

MASKS = pytest.mark.parametrize("mask", [None, MASK], ids=["no mask", "mask"])
DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
TEMPERATURES = [0.0, 0.01, 0.1, 1.0, math.inf]
WORD_MASK = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1], [0, 0, 0], [1, 1, 0], [1, 1, 1]])


@pytest.fixture(params=[2**20, 40], ids=["one block", "blocks"])
def block_size(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a test with all pairs in one block, and in several."""
    monkeypatch.setattr(pairs, "_CPU_BLOCK", request.param)
    return request.param


BLOCKS = pytest.mark.usefixtures("block_size")


def compare(got: Tensor, expected: Tensor, inputs: list[Tensor], doubles: list[Tensor]) -> None:
    """Compare values and all gradients."""
    assert got.shape == expected.shape
    assert_close(got.double(), expected, dtype=got.dtype)
    cotangent = torch.randn_like(expected)
    (got * cotangent).sum().backward()
    (expected * cotangent).sum().backward()
    for value, double in zip(inputs, doubles, strict=True):
        assert_close(value.grad.double(), double.grad, "gradients", dtype=got.dtype)


def doubles_of(inputs: list[Tensor]) -> list[Tensor]:
    return [value.detach().double().requires_grad_() for value in inputs]


@BLOCKS
@DTYPES
@MASKS
@pytest.mark.parametrize("texts", [A, 1], ids=["Gram form", "gated sum"])
def test_gate(dtype: torch.dtype, mask: Tensor | None, texts: int) -> None:
    inputs = leaves((texts, D), (B, N, D), (B, N, D), dtype=dtype)
    doubles = doubles_of(inputs)
    block = TextGatedInteraction(0.3)
    compare(block(*inputs, mask), token_scores.gated(*doubles, mask, 0.3), inputs, doubles)


@BLOCKS
@MASKS
def test_gate_whose_values_are_its_keys(mask: Tensor | None) -> None:
    inputs = leaves((A, D), (B, N, D))
    doubles = doubles_of(inputs)
    expected = token_scores.gated(*doubles, doubles[1], mask, 0.1)
    compare(TextGatedInteraction()(*inputs, mask=mask), expected, inputs, doubles)


@MASKS
def test_pooled_vectors_have_the_scores(mask: Tensor | None) -> None:
    text, keys, values = leaves((A, D), (B, N, D), (B, N, D))
    block = TextGatedInteraction(0.2)
    pooled, gate = block.pool(text, keys, values, mask), block.gate(text, keys, mask)
    expected = block(text, keys, values, mask)
    cosines = torch.einsum("ad,abd->ab", torch.nn.functional.normalize(text, dim=1), pooled)
    assert_close(cosines, expected)
    valid = torch.ones(B) if mask is None else mask.any(1).double()
    assert_close(gate.sum(2), valid.double().expand(A, B))
    assert_close(pooled.norm(dim=2), valid.double().expand(A, B))
    if mask is not None:
        assert (gate[:, ~mask.bool()] == 0).all()


@BLOCKS
@DTYPES
@MASKS
@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "mix"])
@pytest.mark.parametrize("temperature", TEMPERATURES, ids=str)
def test_similarity(
    dtype: torch.dtype, mask: Tensor | None, mixed: bool, temperature: float
) -> None:
    inputs = leaves((A, D), (B, N, D), *([(N, N)] if mixed else []), dtype=dtype)
    doubles = doubles_of(inputs)
    mix = inputs[2] if mixed else None
    got = token_similarity(*inputs[:2], mask, temperature=temperature, mix=mix)
    mix = doubles[2] if mixed else None
    expected = token_scores.weighted(*doubles[:2], mask, temperature, mix)
    compare(got, expected, inputs, doubles)


@BLOCKS
@DTYPES
@MASKS
@pytest.mark.parametrize("reduce", ["mean", "sum"])
def test_late_interaction(dtype: torch.dtype, mask: Tensor | None, reduce: str) -> None:
    inputs = leaves((A, 3, D), (B, N, D), dtype=dtype)
    doubles = doubles_of(inputs)
    word_mask = None if mask is None else WORD_MASK.to(mask.dtype)
    got = late_interaction(*inputs, word_mask, mask, reduce=reduce)
    expected = token_scores.max_similarity(*doubles, word_mask, mask, reduce)
    compare(got, expected, inputs, doubles)


SCORES: dict[str, Callable[..., Tensor]] = {
    "gate": lambda text, tokens, mask=None: TextGatedInteraction(0.2)(text, tokens, mask=mask),
    "similarity": lambda text, tokens, mask=None: token_similarity(
        text, tokens, mask, temperature=0.2
    ),
    "late interaction": lambda text, tokens, mask=None: late_interaction(
        text[:, None], tokens, token_mask=mask
    ),
}
EVERY = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES.keys())


@BLOCKS
@EVERY
def test_gradients_by_finite_differences(score: Callable[..., Tensor]) -> None:
    text, tokens = leaves((2, 3), (2, 3, 3))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert torch.autograd.gradcheck(lambda t, x: score(t, x, mask), (text, tokens))
    assert torch.autograd.gradgradcheck(lambda t, x: score(t, x, mask), (text, tokens))


@BLOCKS
@EVERY
def test_masked_tokens_change_nothing(score: Callable[..., Tensor]) -> None:
    text, tokens = leaves((A, D), (B, N, D))
    holes = tokens.detach().masked_fill(~MASK.bool()[..., None], math.nan).requires_grad_()
    got, expected = score(text, holes, MASK), score(text, tokens, MASK)
    assert torch.equal(got, expected)
    assert (got[:, 3] == 0).all()
    got.sum().backward()
    assert holes.grad.isfinite().all() and text.grad.isfinite().all()
    assert (holes.grad[~MASK.bool()] == 0).all()


@EVERY
def test_order_padding_and_batch_change_nothing(score: Callable[..., Tensor]) -> None:
    text, tokens = leaves((A, D), (B, N, D))
    mask = MASK.clone()
    mask[3, 0] = 1
    expected = score(text, tokens, mask)
    order = torch.randperm(N)
    assert_close(score(text, tokens[:, order], mask[:, order]), expected)
    padding = torch.full((B, 3, D), math.nan, dtype=torch.float64)
    longer = torch.cat([mask, torch.zeros(B, 3, dtype=mask.dtype)], 1)
    assert_close(score(text, torch.cat([tokens, padding], 1), longer), expected)
    for b in range(B):
        alone = tokens[b : b + 1][:, mask[b].bool()]
        assert_close(score(text, alone), expected[:, b : b + 1])
        assert_close(score(text[2:3], alone), expected[2:3, b : b + 1])


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scale_changes_nothing(score: Callable[..., Tensor], dtype: torch.dtype) -> None:
    text, tokens = leaves((A, D), (B, N, D), dtype=dtype)
    expected = score(text, tokens)
    for scale in (1e-30, 1e-12, 1e-3, 1e3, 1e12, 1e30):
        scaled = [(x.detach() * scale).requires_grad_() for x in (text, tokens)]
        got = score(*scaled)
        assert_close(got, expected)
        got.sum().backward()
        assert all(x.grad.isfinite().all() for x in scaled)


@EVERY
def test_zero_vectors_get_no_gradient(score: Callable[..., Tensor]) -> None:
    text, tokens = leaves((A, D), (B, N, D))
    text.data[0] = 0
    tokens.data[1] = 0
    got = score(text, tokens)
    assert (got[0] == 0).all() and (got[:, 1] == 0).all()
    got.sum().backward()
    assert text.grad.isfinite().all() and (text.grad[0] == 0).all()
    assert tokens.grad.isfinite().all() and (tokens.grad[1] == 0).all()


@pytest.mark.parametrize("eps", [1e-3, 1e-4, 1e-5])
def test_tokens_that_nearly_cancel(eps: float) -> None:
    """A video scores the same among one text and among many, for which the Gram form is taken."""
    text, key, centre = torch.randn(8, 64), torch.randn(3, 1, 64), unit(torch.randn(3, 1, 64))
    values = torch.cat([centre, eps * torch.randn(3, 1, 64) - centre], 1)
    gate = TextGatedInteraction()
    scores = gate(text, key.expand(3, 2, 64), values)
    exact = gate(text.double(), key.expand(3, 2, 64).double(), values.double())
    torch.testing.assert_close(scores.double(), exact, rtol=0, atol=1e-7 / eps)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_computed_in_float32(
    score: Callable[..., Tensor], dtype: torch.dtype
) -> None:
    text, tokens = leaves((A, D), (B, N, D), dtype=dtype)
    expected = score(text.float(), tokens.float(), MASK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = score(text, tokens, MASK)
    assert got.dtype == torch.float32 and torch.equal(got, expected)
    got.sum().backward()
    assert text.grad.dtype == tokens.grad.dtype == dtype


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "widths": (
        lambda: token_similarity(torch.zeros(2, 3), torch.zeros(2, 3, 4)),
        ValueError,
        r"tokens must have shape \(B, N, D\), D = 3, no size 0, got \(2, 3, 4\)",
    ),
    "no text": (
        lambda: token_similarity(torch.zeros(0, 3), torch.zeros(2, 3, 3)),
        ValueError,
        r"text must have shape \(A, D\), no size 0, got \(0, 3\)",
    ),
    "integers": (
        lambda: TextGatedInteraction()(torch.zeros(2, 3).long(), torch.zeros(2, 3, 3)),
        TypeError,
        "text must be a floating-point tensor, got torch.int64",
    ),
    "types": (
        lambda: token_similarity(torch.zeros(2, 3), torch.zeros(2, 4, 3).double()),
        TypeError,
        "all be float64, or none of them, got text torch.float32, tokens torch.float64",
    ),
    "values": (
        lambda: TextGatedInteraction()(
            torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.zeros(2, 5, 3)
        ),
        ValueError,
        "values must have shape .*N = 4",
    ),
    "mask shape": (
        lambda: token_similarity(torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.ones(4, 2)),
        ValueError,
        r"mask must have shape \(2, 4\), got \(4, 2\)",
    ),
    "mask values": (
        lambda: token_similarity(torch.zeros(2, 3), torch.zeros(2, 4, 3), torch.full((2, 4), 2)),
        ValueError,
        "mask must hold only 0 and 1",
    ),
    "mix": (
        lambda: token_similarity(torch.zeros(2, 3), torch.zeros(2, 4, 3), mix=torch.eye(3)),
        ValueError,
        r"mix must have shape \(N, N\), N = 4",
    ),
    "temperature": (
        lambda: token_similarity(torch.zeros(2, 3), torch.zeros(2, 4, 3), temperature=-1),
        ValueError,
        "temperature must not be negative, got -1",
    ),
    "gate's temperature": (
        lambda: TextGatedInteraction(0.0),
        ValueError,
        "temperature must be positive and finite, got 0.0",
    ),
    "words": (
        lambda: late_interaction(torch.zeros(2, 3), torch.zeros(2, 4, 3)),
        ValueError,
        r"words must have shape \(A, W, D\)",
    ),
    "reduce": (
        lambda: late_interaction(torch.zeros(2, 1, 3), torch.zeros(2, 4, 3), reduce="max"),
        ValueError,
        "reduce must be",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_gradients_of_torch_func(block_size: int) -> None:
    """There nothing can be recomputed for the backward pass, in blocks either."""
    text, tokens = torch.randn(A, D), torch.randn(B, N, D, requires_grad=True)
    token_similarity(text, tokens).sum().backward()
    found = torch.func.grad(lambda given: token_similarity(text, given).sum())(tokens.detach())
    assert_close(found, tokens.grad)
