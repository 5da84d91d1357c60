"""Dual softmax and query bank normalisation against their formulas, and in the metrics."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from muse_adapter.retrieval import dual_softmax, query_bank_normalization, retrieval_metrics


def cosines(rows: int, columns: int = 6) -> Tensor:
    return torch.rand(rows, columns) * 1.2 - 0.2


def test_dual_softmax_is_its_formula() -> None:
    similarity = cosines(4)
    got = dual_softmax(similarity, temperature=0.1)
    for j in range(6):
        column = [math.exp(float(s) / 0.1) for s in similarity[:, j]]
        for i in range(4):
            expected = float(similarity[i, j]) * column[i] / sum(column)
            assert float(got[i, j]) == pytest.approx(expected, rel=1e-9)


def test_dual_softmax_makes_no_ties() -> None:
    """In float32 both weights of the first query would be zero."""
    similarity = torch.tensor([[-0.5, -0.6], [0.9, 0.9]])
    got = dual_softmax(similarity)
    assert got[0, 0] != 0 and got[0, 0] != got[0, 1]


def inverted_softmax(similarity: Tensor, bank: Tensor, beta: float) -> Tensor:
    """Compute the dynamic inverted softmax as published: exponentials over their sum."""
    raised, total = (beta * similarity).exp(), (beta * bank).exp().sum(0)
    hubs = {int(row.argmax()) for row in bank}
    rows = [row / total if int(row.argmax()) in hubs else row for row in raised]
    return torch.stack(rows)


def test_query_bank_normalization_has_the_ranking_of_its_formula() -> None:
    similarity, bank = cosines(40).double(), cosines(3).double()
    got = query_bank_normalization(similarity, bank)
    expected = inverted_softmax(similarity, bank, 20.0)
    changed = (got != similarity).any(1)
    assert changed.any() and not changed.all()
    torch.testing.assert_close((got * 20).exp(), expected, rtol=1e-9, atol=0)


def test_a_hub_is_lowered() -> None:
    """Video 0 is close to every text; the bank shows it."""
    similarity = torch.tensor([[0.90, 0.1, 0.1], [0.80, 0.78, 0.1], [0.80, 0.1, 0.78]])
    bank = torch.tensor([[0.85, 0.3, 0.3], [0.85, 0.2, 0.3], [0.85, 0.3, 0.2]])
    got = retrieval_metrics(similarity, query_bank=bank)
    assert list(got) == ["t2v", "v2t", "t2v+QB-Norm"]
    assert got["t2v"]["R@1"] == pytest.approx(100 / 3)
    assert got["t2v+QB-Norm"]["R@1"] == 100


def test_dual_softmax_is_named_in_the_metrics() -> None:
    similarity, targets = cosines(9), torch.arange(9) % 6
    plain = retrieval_metrics(similarity, targets)
    got = retrieval_metrics(similarity, targets, dual_softmax=True)
    assert list(got) == ["t2v", "v2t", "t2v+DSL", "v2t+DSL"]
    assert {name: got[name] for name in plain} == plain
    assert got["t2v+DSL"] == retrieval_metrics(dual_softmax(similarity), targets)["t2v"]
    assert got["v2t+DSL"] == retrieval_metrics(dual_softmax(similarity.T).T, targets)["v2t"]
    assert got["t2v+DSL"] != plain["t2v"]


def test_a_video_without_a_text_is_no_query() -> None:
    similarity, targets = cosines(8), torch.tensor([0, 0, 1, 1, 3, 3, 4, 4])
    with_text = similarity[:, [0, 1, 3, 4]]
    renumbered = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    got = retrieval_metrics(similarity, targets, dual_softmax=True)["v2t+DSL"]
    assert got == retrieval_metrics(with_text, renumbered, dual_softmax=True)["v2t+DSL"]


def test_numpy_arrays() -> None:
    np = pytest.importorskip("numpy", reason="needs numpy")
    similarity, targets = cosines(9), torch.arange(9) % 6
    bank = cosines(5)
    expected = retrieval_metrics(similarity, targets, query_bank=bank)
    array = similarity.numpy()
    read_only = array.copy()
    read_only.flags.writeable = False
    for given in (array, array.astype(">f4"), array[::-1].copy()[::-1], read_only):
        assert retrieval_metrics(given, targets.numpy(), query_bank=bank.numpy()) == expected
    assert retrieval_metrics(array, targets.numpy().astype(np.uint8), query_bank=bank) == expected
    assert torch.equal(dual_softmax(array), dual_softmax(similarity))
    lowered = query_bank_normalization(array, bank.numpy())
    assert torch.equal(lowered, query_bank_normalization(similarity, bank))
    with pytest.raises(TypeError, match=r"similarity must be floating point, got torch\.int"):
        retrieval_metrics(array.astype(int))
    with pytest.raises(TypeError, match="numpy arrays of object cannot be converted"):
        retrieval_metrics(array.astype(object))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: dual_softmax(torch.ones(3)),
            r"\(queries, videos\), neither of them 0, got \(3,\)",
        ),
        (lambda: dual_softmax(torch.ones(2, 2), temperature=0), "positive, got 0"),
        (
            lambda: query_bank_normalization(torch.ones(2, 3), torch.ones(2, 4)),
            r"of one gallery, got \(2, 3\) and \(2, 4\)",
        ),
        (
            lambda: query_bank_normalization(torch.ones(2, 3), torch.ones(0, 3)),
            "bank must have shape .* neither of them 0",
        ),
        (
            lambda: query_bank_normalization(torch.ones(1, 1), torch.ones(1, 1), temperature=-1),
            "positive, got -1",
        ),
        (
            lambda: retrieval_metrics(torch.ones(2, 2), query_bank=torch.full((1, 2), torch.nan)),
            "query_bank must be finite",
        ),
    ],
)
def test_refuses(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
