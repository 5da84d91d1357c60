"""TwoStageRetriever against the golden ranking, and on features in mapped files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter import EERCF, ExactRecall, TwoStageRetriever
from muse_adapter.models.eercf_objective import EercfScores
from muse_adapter.retrieval import FeatureRows, retrieval_metrics
from tests.support.golden import Golden

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


class Everything:
    """Features that are the ids themselves."""

    def __getitem__(self, ids: list[int]) -> list[int]:
        return ids


def search_matrix(coarse: Tensor, fine: Tensor, candidates: int, k: int) -> tuple[Any, Tensor]:
    """Search with given scores of all pairs: the vectors of the items are the unit vectors."""
    recall = ExactRecall(torch.eye(coarse.shape[1], dtype=coarse.dtype))
    retriever = TwoStageRetriever(
        recall, Everything(), lambda query, ids: query["fine"][ids], candidates=candidates
    )
    return retriever.search({"fine": fine}, k, recall_queries=coarse)


def golden_scores(file: Golden, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the coarse scores and our sum for reranking."""
    inputs = file.inputs(dtype)
    return inputs["video"], EERCF(16).rerank_score(EercfScores(**inputs, patch=None))


def boosted(coarse: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Write the published ranking as a matrix: candidates by `scores`, the rest by `coarse`."""
    # The published code lifts candidates above all others by adding 100.
    return coarse.scatter(1, ids, 100 + scores.to(coarse.dtype))


def check_metrics(file: Golden, key: str, metrics: dict[str, float]) -> None:
    assert list(metrics) == ["R@1", "R@5", "R@10", "MdR", "MnR"]
    assert list(metrics.values()) == pytest.approx(file.stored(key).tolist(), rel=1e-12)


def ranks(scores: Tensor) -> Tensor:
    """Count for each query, a row, what is above the item of the same index."""
    return (scores > scores.diagonal()[:, None]).sum(1)


@DTYPES
def test_golden_ranking(golden, dtype: torch.dtype) -> None:
    file = golden("eercf_two_stage")
    coarse, fine = golden_scores(file, dtype)
    top = int(file.meta["top_k"])
    ids, scores = search_matrix(coarse, fine, top, top)
    assert torch.equal(ids, file.stored("out.order")[:, :top])
    assert torch.equal(scores, fine.gather(1, ids))
    whole = boosted(coarse, ids, scores)
    file.check("out.boosted", whole)
    assert torch.equal(whole.argsort(1, descending=True), file.stored("out.order"))
    assert torch.equal(ranks(whole), file.stored("out.rank.t2v"))
    check_metrics(file, "out.metrics.t2v", retrieval_metrics(whole)["t2v"])


@DTYPES
def test_golden_ranking_of_all(golden, dtype: torch.dtype) -> None:
    """As many candidates as videos."""
    file = golden("eercf_two_stage")
    coarse, fine = golden_scores(file, dtype)
    ids, _ = search_matrix(coarse, fine, 9, 9)
    assert torch.equal(ids, file.stored("out.full_order"))
    found = (ids == torch.arange(9)[:, None]).int().argmax(1)
    assert torch.equal(found, file.stored("out.rank.t2v_full"))
    check_metrics(file, "out.metrics.t2v_full", retrieval_metrics(fine)["t2v"])


@DTYPES
def test_each_video_has_its_own_texts(golden, dtype: torch.dtype) -> None:
    """The right text is where the file says if it is a candidate, and otherwise not found."""
    file = golden("eercf_two_stage")
    top = int(file.meta["top_k"])
    coarse, fine = golden_scores(file, dtype)
    ids, scores = search_matrix(coarse.T, fine.T, top, top)
    expected = file.stored("out.rank.v2t_own")
    assert (expected < top).any()
    for video, (found, rank) in enumerate(zip(ids.tolist(), expected.tolist(), strict=True)):
        assert found[rank] == video if rank < top else video not in found
    whole = boosted(coarse.T, ids, scores)
    assert torch.equal(ranks(whole), expected)
    check_metrics(file, "out.metrics.v2t_own", retrieval_metrics(whole.T)["v2t"])


@DTYPES
def test_published_search_for_texts(golden, dtype: torch.dtype) -> None:
    """A text can be found only if its own shortlist has the video; we do not search like this."""
    file = golden("eercf_two_stage")
    coarse, fine = golden_scores(file, dtype)
    top = int(file.meta["top_k"])
    whole = boosted(coarse, *search_matrix(coarse, fine, top, top))
    assert torch.equal(ranks(whole.T), file.stored("out.rank.v2t_shared"))
    check_metrics(file, "out.metrics.v2t_shared", retrieval_metrics(whole)["v2t"])


def test_equal_fine_scores_keep_the_order_of_the_recall() -> None:
    coarse = torch.tensor([[1.0, 4.0, 2.0, 3.0]])
    ids, scores = search_matrix(coarse, torch.tensor([[5.0, 1.0, 1.0, 1.0]]), 3, 3)
    assert ids.tolist() == [[1, 3, 2]] and scores.tolist() == [[1.0] * 3]


def small_corpus(folder: Path) -> tuple[EERCF, dict[str, Any]]:
    """Save features of 20 videos in half precision, and map the files."""
    numpy = pytest.importorskip("numpy", reason="needs numpy")
    scorer = EERCF(8)
    shapes = {"frames": (20, 3, 8), "fused": (20, 3, 8), "patches": (20, 3, 2, 8)}
    mapped = {}
    for name, shape in shapes.items():
        numpy.save(folder / f"{name}.npy", torch.randn(shape).half().numpy())
        mapped[name] = numpy.load(folder / f"{name}.npy", mmap_mode="r")
    return scorer, mapped


def test_eercf_from_mapped_files(tmp_path: Path) -> None:
    """All candidates: the ranking of the full scores; ids are strings."""
    scorer, mapped = small_corpus(tmp_path)
    arrays = {name: torch.tensor(array.copy()) for name, array in mapped.items()}
    names = [f"{i}.mp4" for i in range(20)]
    text = torch.randn(4, 8)
    vectors = scorer.recall_video(arrays["fused"]).detach()
    rows = FeatureRows(mapped, names)
    retriever = TwoStageRetriever(
        ExactRecall(vectors, names),
        rows,
        lambda query, found: scorer.rerank_candidates(query, **found),
        candidates=20,
    )
    ids, scores = retriever.search(text, 5, recall_queries=scorer.recall_text(text))
    full = scorer.rerank(text, **arrays).detach()
    expected = full.topk(5)
    torch.testing.assert_close(scores, expected.values)
    assert ids == [[names[i] for i in row] for row in expected.indices.tolist()]


def test_rows_are_views_of_the_file(tmp_path: Path) -> None:
    _, mapped = small_corpus(tmp_path)
    row = FeatureRows(mapped)[[4, 2]]["frames"][0]
    array = mapped["frames"]
    assert row.data_ptr() == array.ctypes.data + 4 * array.strides[0]
    assert row.dtype == torch.float16
    alone = FeatureRows(array, list("abcdefghijklmnopqrst"))["c", "a"]
    assert torch.equal(alone[0], torch.tensor(array[2])) and len(alone) == 2


def test_lazy_rows_are_the_same_views(tmp_path: Path) -> None:
    scorer, mapped = small_corpus(tmp_path)
    names = list("abcdefghijklmnopqrst")
    views = FeatureRows(mapped, names)["t", "b", "c"]
    lazy = FeatureRows(mapped, names, lazy=True)["t", "b", "c"]
    for name, rows in lazy.items():
        assert len(rows) == 3
        expected = [*views[name], views[name][2], *views[name][1:]]
        for row, view in zip([*rows, rows[-1], *rows[1:]], expected, strict=True):
            assert row.data_ptr() == view.data_ptr() and torch.equal(row, view)
    text = torch.randn(8)
    with torch.no_grad():
        got, expected = (scorer.rerank_candidates(text, **rows) for rows in (lazy, views))
    assert torch.equal(got, expected)


@pytest.mark.parametrize("size", [1, 30, 2**20], ids=str)
def test_candidates_in_groups(size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer, mapped = small_corpus(tmp_path)
    monkeypatch.setattr("muse_adapter.ops.rows._GROUP_NUMBERS", size)
    rows = FeatureRows(mapped)[list(range(20))]
    masks = torch.ones(20, 3)
    masks[1, 2] = 0
    text = torch.randn(8)
    with torch.no_grad():
        got = scorer.rerank_candidates(text, **rows, frame_mask=list(masks))
    arrays = {name: torch.stack(row) for name, row in rows.items()}
    torch.testing.assert_close(got, scorer.rerank(text[None], **arrays, frame_mask=masks)[0])


class Index:
    """An index as those of libraries: arrays of ids, -1 where nothing was found."""

    def __init__(self, ids: list[list[int]], kind: Callable[[Any], Any]) -> None:
        self.ids, self.kind = ids, kind

    def search(self, vectors: Any, k: int) -> tuple[Any, Any]:
        return None, self.kind(self.ids)


def as_array(ids: list[list[int]]) -> Any:
    numpy = pytest.importorskip("numpy", reason="needs numpy")
    return numpy.array(ids)


@pytest.mark.parametrize("kind", [torch.tensor, as_array], ids=["tensor", "numpy"])
def test_missing_results_of_a_library(kind: Callable[[Any], Any]) -> None:
    index = Index([[3, 5, -1], [-1, -1, -1]], kind)
    retriever = TwoStageRetriever(index, Everything(), lambda query, ids: torch.tensor(ids) * 1.0)
    ids, scores = retriever.search(torch.zeros(2, 4), 3)
    assert ids.tolist() == [[5, 3], [-1, -1]]
    assert scores.tolist() == [[5.0, 3.0], [-torch.inf] * 2]


def test_scores_keep_their_type_after_a_query_without_a_result() -> None:
    index = Index([[-1, -1], [0, 1]], torch.tensor)
    fine = torch.tensor([1.0, 1 + 1e-12], dtype=torch.float64)
    retriever = TwoStageRetriever(index, Everything(), lambda query, ids: fine)
    _, scores = retriever.search(torch.zeros(2, 4), 2)
    assert scores.dtype == torch.float64 and scores[1, 0] > scores[1, 1]


def test_ids_in_lists() -> None:
    index = Index([["a", "bb"], ["ccc"]], list)
    retriever = TwoStageRetriever(
        index, Everything(), lambda query, ids: [float(len(name)) for name in ids]
    )
    ids, scores = retriever.search(torch.zeros(2, 4))
    assert ids == [["bb", "a"], ["ccc", None]]
    assert scores.tolist() == [[2.0, 1.0], [3.0, -torch.inf]]


def retriever(rerank: Callable[[Any, Any], Any] = lambda query, ids: torch.zeros(len(ids))) -> Any:
    return TwoStageRetriever(ExactRecall(torch.eye(4)), Everything(), rerank, candidates=3)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "k": (
        lambda: retriever().search(torch.eye(4), 4),
        ValueError,
        "k must be from 1 to candidates = 3, got 4",
    ),
    "candidates": (
        lambda: TwoStageRetriever(ExactRecall(torch.eye(2)), [], len, candidates=0),
        ValueError,
        "candidates must be at least 1",
    ),
    "mapping": (
        lambda: retriever().search({"text": torch.eye(4)}, 1),
        TypeError,
        "needs recall_queries",
    ),
    "rows": (
        lambda: retriever().search(
            {"a": torch.eye(4), "b": torch.eye(3)}, 1, recall_queries=torch.eye(4)
        ),
        ValueError,
        "one number of rows",
    ),
    "numbers of queries": (
        lambda: retriever().search(torch.eye(3), 1, recall_queries=torch.eye(4)),
        ValueError,
        "must answer 3 queries, got 4",
    ),
    "shape of scores": (
        lambda: retriever(lambda query, ids: torch.zeros(1, 3)).search(torch.eye(4), 1),
        ValueError,
        r"one score for each of 3 candidates, got shape \(1, 3\)",
    ),
    "NaN": (
        lambda: retriever(lambda query, ids: torch.full((3,), torch.nan)).search(torch.eye(4), 1),
        ValueError,
        "rerank must not return NaN, got it for 3 of 3 ids",
    ),
    "features": (
        lambda: FeatureRows({"a": torch.eye(2), "b": torch.eye(3)}),
        ValueError,
        "one number of items",
    ),
    "no array": (lambda: FeatureRows(["a"]), TypeError, "must be a tensor or numpy array"),
    "unknown id": (lambda: FeatureRows(torch.eye(2))[[2]], KeyError, "2"),
    "huge id": (lambda: FeatureRows(torch.eye(2))[[2**63]], KeyError, "9223"),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
