"""Losses of EERCF, SigLIP and partially relevant retrieval: golden files and definitions."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muse_adapter import losses
from tests.support.tolerances import assert_close

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
LABELS = torch.tensor([2, 0, 2, 2, 0])
SCORES = (5, 4)  # video 1 and 3 have no text


def drawn(shape: tuple[int, ...] = SCORES, dtype: torch.dtype = torch.float64) -> Tensor:
    return (2 * torch.randn(shape, dtype=torch.float64)).to(dtype).requires_grad_()


def compare(run: Callable[[Tensor], Tensor], definition: Callable[[Tensor], Tensor]) -> None:
    """Compare values and gradients in float64 and float32, and check finite differences."""
    for dtype in (torch.float64, torch.float32):
        x = drawn(dtype=dtype)
        double = x.detach().double().requires_grad_()
        got, expected = run(x), definition(double)
        assert got.shape == () and got.dtype == dtype
        assert_close(got.double(), expected, dtype=dtype)
        got.backward()
        expected.backward()
        assert_close(x.grad.double(), double.grad, "gradients", dtype=dtype)
    assert torch.autograd.gradcheck(run, drawn())
    half = drawn(dtype=torch.float16)
    assert_close(run(half), run(half.float()))


def test_contrastive_loss_with_targets() -> None:
    def definition(logits: Tensor) -> Tensor:
        by_text = sum(
            torch.log(row.exp().sum()) - row[label]
            for row, label in zip(logits, LABELS, strict=True)
        )
        by_video = 0.0
        for video in (0, 2):
            own, others = logits[video == LABELS, video], logits[video != LABELS, video]
            terms = [torch.log(score.exp() + others.exp().sum()) - score for score in own]
            by_video = by_video + sum(terms) / len(terms)
        return (by_text / 5 + by_video / 2) / 2

    compare(lambda logits: losses.contrastive_loss(logits, LABELS), definition)


def test_contrastive_loss_of_pairs_has_the_same_value() -> None:
    logits, order = drawn((4, 4)), torch.tensor([2, 0, 3, 1])
    expected = losses.contrastive_loss(logits)
    assert_close(losses.contrastive_loss(logits, torch.arange(4)), expected)
    assert_close(losses.contrastive_loss(logits[order], order), expected)


def test_texts_of_one_video_are_no_negatives_of_each_other() -> None:
    """The score of one does not move the other, in the direction of the video."""
    logits = drawn((2, 1))
    loss = losses.contrastive_loss(logits, torch.tensor([0, 0]))
    assert loss.item() == 0
    loss.backward()
    assert (logits.grad == 0).all()


def test_sigmoid_loss() -> None:
    def definition(logits: Tensor) -> Tensor:
        signs = -torch.ones(SCORES, dtype=torch.float64)
        for text, label in enumerate(LABELS):
            signs[text, label] = 1
        return -(1 / (1 + (-signs * logits).exp())).log().sum() / 5

    compare(lambda logits: losses.sigmoid_loss(logits, LABELS), definition)
    square = drawn((3, 3))
    assert_close(losses.sigmoid_loss(square), losses.sigmoid_loss(square, torch.arange(3)))
    assert losses.sigmoid_loss(torch.tensor([[1e4]])).item() == 0


def test_multi_positive_nce_where_videos_have_no_query() -> None:
    def definition(scores: Tensor) -> Tensor:
        by_query = sum(
            torch.log(row.exp().sum()) - row[label]
            for row, label in zip(scores, LABELS, strict=True)
        )
        by_video = sum(
            torch.log(scores[:, v].exp().sum()) - torch.log(scores[v == LABELS, v].exp().sum())
            for v in (0, 2)
        )
        return by_query / 5 + by_video / 2

    compare(lambda scores: losses.multi_positive_nce(scores, LABELS), definition)


def test_hardest_negatives() -> None:
    def definition(scores: Tensor) -> Tensor:
        by_query = sum(
            torch.relu(0.3 + max(s for v, s in enumerate(row) if v != label) - row[label])
            for row, label in zip(scores, LABELS, strict=True)
        )
        by_video = sum(
            torch.relu(0.3 + scores[v != LABELS, v].max() - scores[v == LABELS, v].mean())
            for v in (0, 2)
        )
        return by_query / 5 + by_video / 2

    compare(lambda x: losses.triplet_loss(x, LABELS, margin=0.3, negatives="hardest"), definition)


def test_random_negatives_are_negatives() -> None:
    """All negatives are alike, so any choice gives the same loss; the own ones differ."""
    own = LABELS[:, None] == torch.arange(4)
    scores = torch.where(own, 0.9, 0.5)
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        loss = losses.triplet_loss(scores, LABELS, margin=0.5, generator=generator)
        assert loss.item() == pytest.approx(0.2)
    scores = drawn().detach()
    one, two = (
        losses.triplet_loss(scores, LABELS, generator=torch.Generator().manual_seed(7))
        for _ in range(2)
    )
    assert torch.equal(one, two)


def test_triplet_loss_without_negatives() -> None:
    assert losses.triplet_loss(torch.zeros(2, 1), torch.tensor([0, 0])).item() == 0


@DTYPES
def test_golden_partially_relevant(golden, dtype: torch.dtype) -> None:
    """The scores of the file, so the losses are tested apart from the model."""
    file = golden("mamfusion_scores")
    labels = file.tensor("in.labels")
    negatives = file.tensor("in.t2v_negative"), file.tensor("in.v2t_negative")
    for level in ("clip", "frame"):
        raw, scores = file.tensor(f"out.{level}_raw", dtype), file.tensor(f"out.{level}", dtype)
        file.check(f"out.loss.{level}_nce", losses.multi_positive_nce(raw, labels))
        triplet = losses.triplet_loss(scores, labels, negatives=negatives)
        file.check(f"out.loss.{level}_triplet", triplet)
    queries = file.tensor("in.query", dtype)
    file.check("out.loss.query_diverse", losses.query_diverse_loss(queries, labels))


def test_a_zero_query_gets_no_gradient() -> None:
    queries = torch.randn(4, 6)
    queries[1] = 0
    queries.requires_grad_()
    losses.query_diverse_loss(queries, torch.tensor([0, 0, 1, 1])).backward()
    assert queries.grad is not None and queries.grad.isfinite().all()
    assert not queries.grad[1].any() and queries.grad.abs().max() < 100


@pytest.mark.parametrize("scale", [1e-30, 1e-24, 1e24])
def test_pearson_of_a_dimension_of_another_scale(scale: float) -> None:
    x, y = torch.randn(2, 8, 4)
    expected = losses.pearson_constraint(x, y, off_diagonal=0.1)
    x = torch.cat([x[:, :1] * scale, x[:, 1:]], 1).requires_grad_()
    loss = losses.pearson_constraint(x, y, off_diagonal=0.1)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert x.grad is not None and x.grad[:, 1:].isfinite().all() and not x.grad.isnan().any()


def test_query_diverse_loss() -> None:
    def definition(queries: Tensor) -> Tensor:
        unit = queries / queries.norm(dim=1, keepdim=True)
        terms = []
        for i in range(5):
            same = [j for j in range(5) if j != i and LABELS[j] == LABELS[i]]
            total = sum(torch.exp(4 * (unit[i] @ unit[j] + 0.1)) for j in same)
            terms.append(torch.log(1 + total))
        return sum(terms) / 5

    compare(
        lambda queries: losses.query_diverse_loss(queries, LABELS, scale=4.0, delta=0.1), definition
    )
    alone = drawn()
    loss = losses.query_diverse_loss(alone, torch.arange(5))
    loss.backward()
    assert loss.item() == 0 and (alone.grad == 0).all()


@DTYPES
def test_golden_pearson(golden, dtype: torch.dtype) -> None:
    file = golden("eercf_pearson")
    x, y = (value.requires_grad_() for value in file.inputs(dtype).values())
    loss = losses.pearson_constraint(x, y)
    file.check("out.loss", loss)
    file.check("out.loss_off_diagonal", losses.pearson_constraint(x, y, off_diagonal=0.02))
    loss.backward()
    file.check("grad.in.x", x.grad)
    file.check("grad.in.y", y.grad)


@DTYPES
def test_golden_correlations(golden, dtype: torch.dtype) -> None:
    """One dimension alone costs (c - 1)^2, and c is below 1."""
    file = golden("eercf_pearson")
    x, y = (value.split(1, 1) for value in file.inputs(dtype).values())
    costs = [[losses.pearson_constraint(i, j, diagonal=1.0) for j in y] for i in x]
    correlation = 1 - torch.stack([torch.stack(row) for row in costs]).sqrt()
    file.check("out.correlation", correlation)
    rows = len(x[0])
    file.check("out.true_correlation", rows / (rows - 1) * correlation)


def test_pearson_of_equal_inputs_and_at_any_scale() -> None:
    x = torch.randn(6, 5, dtype=torch.float64)
    assert losses.pearson_constraint(x, x).item() == pytest.approx(0.14 * 5 / 36)
    y = torch.randn(6, 5, dtype=torch.float64)
    expected = losses.pearson_constraint(x, y, off_diagonal=0.1)
    assert_close(losses.pearson_constraint(1e6 * x + 3, 1e-6 * y, off_diagonal=0.1), expected)


@pytest.mark.parametrize("rows", [1, 3])
def test_pearson_of_a_constant_dimension(rows: int) -> None:
    x = torch.full((rows, 2), 0.1, requires_grad=True)
    y = torch.randn(rows, 2, requires_grad=True)
    loss = losses.pearson_constraint(x, y, off_diagonal=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.14)
    assert (x.grad == 0).all() and (y.grad == 0).all()


ZERO = torch.zeros(2, 3)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "not square": (lambda: losses.sigmoid_loss(ZERO), ValueError, "must be square"),
    "vector": (
        lambda: losses.contrastive_loss(ZERO[0], LABELS[:2]),
        ValueError,
        r"logits must have shape \(texts, videos\)",
    ),
    "integers": (
        lambda: losses.contrastive_loss(ZERO.long(), LABELS[:2]),
        TypeError,
        "logits must be a floating-point tensor, got torch.int64",
    ),
    "number of targets": (
        lambda: losses.contrastive_loss(ZERO, LABELS),
        ValueError,
        r"targets must have shape \(2,\), got \(5,\)",
    ),
    "float targets": (
        lambda: losses.contrastive_loss(ZERO, torch.zeros(2)),
        TypeError,
        "targets must be an integer tensor",
    ),
    "range of targets": (
        lambda: losses.contrastive_loss(ZERO, torch.tensor([0, 3])),
        ValueError,
        "targets must be from 0 to 2, got 3",
    ),
    "negatives": (
        lambda: losses.triplet_loss(ZERO, LABELS[:2], negatives="easy"),
        ValueError,
        'negatives must be "random", "hardest" or indices',
    ),
    "pearson": (
        lambda: losses.pearson_constraint(ZERO, ZERO[:1]),
        ValueError,
        "x and y must have one shape",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_large_scores_do_not_overflow() -> None:
    logits = 1e4 * torch.randn(5, 4)
    for loss in (losses.contrastive_loss, losses.sigmoid_loss, losses.multi_positive_nce):
        assert math.isfinite(loss(logits, LABELS).item())
