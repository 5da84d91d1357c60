"""retrieval_metrics against definitions that walk through every order of the gallery."""

from __future__ import annotations

import itertools
import statistics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from muse_adapter.retrieval.metrics import retrieval_metrics

KS = (1, 2, 5)


def brute_force(scores: list[list[float]], correct: list[set[int]]) -> dict[str, float]:
    """Compute the metrics of queries (rows) over all orders of the gallery (columns).

    Each order is sorted by score, stably. `correct[i]` are the correct columns of row i; rows
    without one are no queries.
    """
    expected: list[float] = []
    hits: dict[int, list[float]] = {k: [] for k in KS}
    for row, own in zip(scores, correct, strict=True):
        if not own:
            continue
        ranks = []
        for order in itertools.permutations(range(len(row))):
            ranked = sorted(order, key=lambda column: -row[column])
            ranks.append(1 + min(ranked.index(column) for column in own))
        expected.append(statistics.fmean(ranks))
        for k in KS:
            hits[k].append(statistics.fmean(rank <= k for rank in ranks))
    return {
        **{f"R@{k}": 100 * statistics.fmean(hits[k]) for k in KS},
        "MdR": statistics.median(expected),
        "MnR": statistics.fmean(expected),
    }


def oracle(similarity: Tensor, targets: list[int]) -> dict[str, dict[str, float]]:
    videos = similarity.shape[1]
    own = [{i for i, target in enumerate(targets) if target == v} for v in range(videos)]
    return {
        "t2v": brute_force(similarity.tolist(), [{target} for target in targets]),
        "v2t": brute_force(similarity.T.tolist(), own),
    }


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, list[int]]:
    texts, videos = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    # Few distinct values, so that ties of every kind are common.
    values = st.lists(st.integers(-2, 2), min_size=texts * videos, max_size=texts * videos)
    targets = st.lists(st.integers(0, videos - 1), min_size=texts, max_size=texts)
    return torch.tensor(draw(values)).view(texts, videos) / 2, draw(targets)


def assert_same(got: dict[str, dict[str, float]], expected: dict[str, dict[str, float]]) -> None:
    assert list(got) == ["t2v", "v2t"]
    for direction in got:
        assert got[direction] == pytest.approx(expected[direction], rel=1e-12, abs=1e-12)


@given(cases())
def test_equals_brute_force_over_all_orders(case: tuple[Tensor, list[int]]) -> None:
    similarity, targets = case
    assert_same(retrieval_metrics(similarity, targets, KS), oracle(similarity, targets))


@pytest.mark.parametrize(
    ("similarity", "targets", "t2v", "v2t"),
    [
        pytest.param(
            [[3, 1, 2], [1, 3, 2], [1, 2, 3]], None, (100, 1, 1), (100, 1, 1), id="perfect"
        ),
        # Every text likes video 0 best, and videos 1 and 2 like their own texts least.
        pytest.param(
            [[9, 6, 7], [8, 4, 5], [8, 5, 1]],
            None,
            (100 / 3, 3, 7 / 3),
            (100 / 3, 3, 7 / 3),
            id="by hand",
        ),
        # A constant matrix is chance, not success: rank (n + 1) / 2, R@1 = 1 / n.
        pytest.param([[0] * 4] * 4, None, (25, 2.5, 2.5), (25, 2.5, 2.5), id="constant"),
        # Each video's captions are 2nd and 4th: the better one counts.
        pytest.param(
            [[3, 4], [1, 2], [4, 3], [2, 1]],
            [0, 0, 1, 1],
            (0, 2, 2),
            (0, 2, 2),
            id="the best caption counts",
        ),
        # Two of four equal captions are right: the first of them is expected at 1 + 2 / 3.
        pytest.param(
            [[0, 0]] * 4,
            [0, 0, 1, 1],
            (50, 1.5, 1.5),
            (50, 5 / 3, 5 / 3),
            id="constant, two captions each",
        ),
        # Video 1 has no caption: it distracts text 0 but asks nothing itself.
        pytest.param([[1, 2]], [0], (0, 2, 2), (100, 1, 1), id="video without caption"),
        pytest.param([[0.5]], None, (100, 1, 1), (100, 1, 1), id="one of each"),
    ],
)
def test_by_hand(similarity: list, targets: list | None, t2v: tuple, v2t: tuple) -> None:
    got = retrieval_metrics(torch.tensor(similarity, dtype=torch.float32), targets, ks=[1])
    for direction, expected in (("t2v", t2v), ("v2t", v2t)):
        assert list(got[direction]) == ["R@1", "MdR", "MnR"]
        assert tuple(got[direction].values()) == pytest.approx(expected)
        assert all(type(value) is float for value in got[direction].values())


def test_median_of_an_even_number_of_queries_is_the_middle() -> None:
    # Ranks 1, 1, 2, 4.
    similarity = torch.tensor(
        [[9.0, 0, 0, 0], [0, 9, 0, 0], [0, 0, 8, 9], [4, 3, 2, 1]],
    )
    assert retrieval_metrics(similarity)["t2v"]["MdR"] == 1.5


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_any_floating_type(dtype: torch.dtype) -> None:
    similarity = torch.randn(40, 30).to(dtype)
    targets = torch.randint(30, (40,))
    expected = retrieval_metrics(similarity.double(), targets)
    assert retrieval_metrics(similarity, targets) == expected


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64], ids=str)
def test_any_integer_type_of_targets(dtype: torch.dtype) -> None:
    similarity, targets = torch.randn(6, 4), torch.tensor([0, 3, 2, 1, 1, 0])
    expected = retrieval_metrics(similarity, targets.tolist())
    assert retrieval_metrics(similarity, targets.to(dtype)) == expected


def test_without_targets_is_the_diagonal() -> None:
    similarity = torch.randn(20, 20)
    assert retrieval_metrics(similarity) == retrieval_metrics(similarity, torch.arange(20))


def test_monotone_transformation_and_joint_permutation_change_nothing() -> None:
    similarity, targets = torch.randn(50, 20, dtype=torch.float64), torch.randint(20, (50,))
    expected = retrieval_metrics(similarity, targets)
    assert retrieval_metrics(similarity.exp() * 7, targets) == expected
    texts, videos = torch.randperm(50), torch.randperm(20)
    permuted = retrieval_metrics(similarity[texts][:, videos], videos.argsort()[targets[texts]])
    for direction in expected:
        assert permuted[direction] == pytest.approx(expected[direction])


def test_k_beyond_the_gallery_is_always_a_hit() -> None:
    got = retrieval_metrics(torch.randn(3, 3).round(), ks=(3, 1000))
    assert got["t2v"]["R@3"] == got["t2v"]["R@1000"] == got["v2t"]["R@1000"] == 100


def test_many_ties_are_exact() -> None:
    # 20,000 equal scores: R@K is K / n and the mean rank (n + 1) / 2, without rounding to speak of.
    got = retrieval_metrics(torch.zeros(20_000, 1).T.contiguous(), [7], ks=(10, 5000))["t2v"]
    assert got == pytest.approx({"R@10": 0.05, "R@5000": 25, "MdR": 10000.5, "MnR": 10000.5})


def test_leaves_its_input_alone() -> None:
    similarity = torch.randn(5, 5, requires_grad=True)
    before = similarity.detach().clone()
    retrieval_metrics(similarity)
    assert torch.equal(similarity, before) and similarity.grad is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_clip4clip_protocol_of_the_docstring(dtype: torch.dtype) -> None:
    # CLIP4Clip counts videos above, not captions: both captions of video 1 beat video 0's best.
    similarity = torch.tensor([[5.0, 0], [1, 0], [6, 1], [7, 2]], dtype=dtype)
    targets = torch.tensor([0, 0, 1, 1])
    assert retrieval_metrics(similarity, targets)["v2t"]["MnR"] == (3 + 1) / 2
    lowest = similarity.new_full((2, 2), -torch.inf)
    best = lowest.scatter_reduce(0, targets[:, None].expand(-1, 2), similarity, "amax")
    assert retrieval_metrics(best)["v2t"]["MnR"] == (2 + 1) / 2


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("similarity", "targets", "ks", "error", "message"),
    [
        (
            [[1.0]],
            None,
            (1,),
            TypeError,
            "similarity must be a torch tensor or a numpy array, got list",
        ),
        (torch.ones(2, 2).int(), None, (1,), TypeError, "must be floating point, got torch.int32"),
        (torch.ones(2), None, (1,), ValueError, r"must have shape \(texts, videos\).*got \(2,\)"),
        (torch.ones(1, 2, 2), None, (1,), ValueError, r"got \(1, 2, 2\)"),
        (torch.ones(0, 0), None, (1,), ValueError, r"neither of them 0, got \(0, 0\)"),
        (torch.ones(0, 3), [], (1,), ValueError, r"neither of them 0, got \(0, 3\)"),
        (
            torch.ones(2, 3),
            None,
            (1,),
            ValueError,
            r"must be square.* = \(2, 3\)",
        ),
        (
            torch.tensor([[1, NAN], [NAN, 1]]),
            None,
            (1,),
            ValueError,
            "got 2 NaN.* out of 4",
        ),
        (torch.tensor([[INF]]), None, (1,), ValueError, "finite, got 1 NaN or infinite"),
        (torch.tensor([[-INF]]), None, (1,), ValueError, "finite, got 1 NaN or infinite"),
        (torch.ones(2, 3), [0, 3], (1,), ValueError, "video indices from 0 to 2, got 3"),
        (torch.ones(2, 3), [-1, 2], (1,), ValueError, "video indices from 0 to 2, got -1"),
        (torch.ones(2, 3), [0], (1,), ValueError, r"targets must have shape.*\(2,\), got \(1,\)"),
        (torch.ones(2, 3), [[0], [1]], (1,), ValueError, r"\(2,\), got \(2, 1\)"),
        (torch.ones(2, 3), [0.0, 1.0], (1,), TypeError, "must be integers, got torch.float32"),
        (torch.ones(2, 3), [True, False], (1,), TypeError, "must be integers, got torch.bool"),
        (torch.ones(2, 2), None, (), ValueError, "ks must be positive.*not empty"),
        (torch.ones(2, 2), None, (0, 1), ValueError, "ks must be positive"),
        (torch.ones(2, 2), None, (1, 1), ValueError, "without repeats"),
        (torch.ones(2, 2), None, (1.0,), TypeError, "ks must be a tuple or list of ints"),
        (torch.ones(2, 2), None, (True,), TypeError, "ks must be a tuple or list of ints"),
        (torch.ones(2, 2), None, 5, TypeError, "ks must be a tuple or list of ints, got 5"),
    ],
)
def test_refuses(
    similarity: object, targets: object, ks: object, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        retrieval_metrics(similarity, targets, ks)  # type: ignore[arg-type]


def test_no_sort_of_the_whole_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sort = Tensor.sort
    monkeypatch.setattr(Tensor, "sort", lambda self: sizes.append(self.numel()) or sort(self))
    retrieval_metrics(torch.randn(30, 20), torch.arange(30) % 20)
    assert sizes == [30, 20]
