"""ExactRecall against a full ranking in float64."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter import ExactRecall
from muse_adapter.ops.choice import BACKENDS
from muse_adapter.retrieval import exact_recall, narrow_vectors

KINDS = [
    "ByteVectors",
    "HalfVectors",
    pytest.param(
        "PackedVectors",
        marks=pytest.mark.skipif(
            not narrow_vectors.PackedVectors.is_available(),
            reason="this processor, or this build of torch, has no FBGEMM",
        ),
    ),
]
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def full_ranking(queries: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    scores = queries.double() @ vectors.double().T
    best, order = scores.sort(dim=1, descending=True, stable=True)
    return best[:, :k], order[:, :k]


@pytest.fixture(params=["one chunk", "chunks"])
def chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "chunks":
        monkeypatch.setattr(exact_recall, "_BLOCK", 7)
        monkeypatch.setattr(exact_recall, "_CHUNK", 40)
        monkeypatch.setattr(exact_recall, "_PART", 30)
        monkeypatch.setattr(narrow_vectors, "_CHUNK", 40)
        monkeypatch.setattr(exact_recall, "_QUERIES", 3)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 1e3, 1e-4], ids=str)
def test_equals_the_full_ranking(dtype: torch.dtype, scale: float) -> None:
    vectors = (scale * torch.randn(150, 16, dtype=torch.float64)).to(dtype)
    queries = torch.randn(5, 16, dtype=torch.float64).to(dtype)
    recall = ExactRecall(vectors)
    for k in (1, 10, 150, 200):
        expected, order = full_ranking(queries, vectors, k)
        scores, positions = recall.search(queries, k)
        assert torch.equal(positions, order)
        assert scores.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(scores.double(), expected, rtol=1e-6, atol=0)
        for i in range(5):  # the first pass of a single query is in float16
            one = recall.search(queries[i : i + 1], k)
            assert torch.equal(one[1][0], order[i]) and torch.equal(one[0][0], scores[i])


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_scores_are_in_order(dtype: torch.dtype) -> None:
    """Copies of three vectors, in turn, far more than the spare candidates."""
    vectors = torch.randn(3, 8).to(dtype).repeat(60, 1)
    queries = torch.randn(4, 8).to(dtype)
    expected = full_ranking(queries, vectors, 70)[1]
    assert torch.equal(ExactRecall(vectors).search(queries, 70)[1], expected)
    assert torch.equal(ExactRecall(vectors).search(queries[:1], 70)[1], expected[:1])


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("count", [1, 2])
def test_scores_closer_than_float16(count: int) -> None:
    """All differ by less than the rounding of the first pass."""
    vectors = torch.ones(100, 4)
    vectors[:, 0] += 1e-5 * torch.randperm(100)
    queries = torch.ones(count, 4)
    expected = full_ranking(queries, vectors, 5)[1]
    assert torch.equal(ExactRecall(vectors).search(queries, 5)[1], expected)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-23, 1e15, 1e30], ids=str)
@pytest.mark.parametrize("count", [1, 3])
def test_scale_of_queries_changes_no_order(scale: float, count: int) -> None:
    """Squares of their entries vanish or overflow in float32."""
    vectors, queries = torch.randn(500, 64), torch.randn(count, 64) * scale
    expected = full_ranking(queries, vectors, 5)[1]
    assert torch.equal(ExactRecall(vectors).search(queries, 5)[1], expected)


def test_scores_beyond_their_type_are_refused() -> None:
    with pytest.raises(ValueError, match="inner products must not overflow"):
        ExactRecall(torch.randn(9, 4) * 1e10).search(torch.randn(2, 4) * 1e30, 3)
    query = torch.full((1, 16), 1e39, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"overflow torch.float32, got queries .* 4.0e\+39"):
        ExactRecall(0.01 * torch.eye(16), narrow_copy=False).search(query, 3)


@pytest.mark.parametrize("scale", [1e60, 1e-60], ids=str)
def test_errors_beyond_float32(scale: float) -> None:
    vectors = torch.randn(100, 16, dtype=torch.float64) * scale
    queries = torch.randn(64, 16, dtype=torch.float64)
    expected = full_ranking(queries, vectors, 3)[1]
    assert torch.equal(ExactRecall(vectors, narrow_copy=False).search(queries, 3)[1], expected)


def test_autocast_changes_nothing() -> None:
    """A product in bfloat16, of an error beyond its bound, finds the wrong one of close vectors."""
    first, second = torch.full((2, 64), 1 + 2.0**-8)
    second = second + 2.0**-10
    second[:16] = 1
    recall = ExactRecall((torch.stack([second, first]) / 8).half())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert recall.search(torch.full((1, 64), 1 / 8), 1)[1].item() == 1


def test_a_pickled_copy_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(narrow_vectors, "_CHUNK", 60)
    vectors = torch.randn(1000, 16)
    recall = ExactRecall(vectors)
    data = pickle.dumps(recall)
    assert len(data) < 2 * vectors.nbytes
    expected, got = (each.search(vectors[:2], 5) for each in (recall, pickle.loads(data)))
    assert torch.equal(got[0], expected[0]) and torch.equal(got[1], expected[1])


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 6, 7])
def test_narrow_copy_changes_no_result(
    dtype: torch.dtype, kind: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind != "PackedVectors":
        monkeypatch.setattr(narrow_vectors.PackedVectors, "is_available", lambda: False)
    backend = BACKENDS["numba" if kind == "ByteVectors" else "torch"]
    monkeypatch.setattr(narrow_vectors, "choose", lambda device, only_here: backend)
    made = narrow_vectors.copy_narrow(lambda: [torch.eye(16)], (16, 16))
    assert type(made).__name__ == kind
    vectors, queries = torch.randn(500, 32).to(dtype), torch.randn(count, 32)
    expected = full_ranking(queries, vectors, 20)[1]
    scores, _ = ExactRecall(vectors, narrow_copy=False).search(queries, 20)
    for narrow_copy in (True, None):
        got = ExactRecall(vectors, narrow_copy=narrow_copy).search(queries, 20)
        assert torch.equal(got[0], scores) and torch.equal(got[1], expected)


@pytest.mark.usefixtures("chunks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 20.0])
def test_a_known_norm_changes_no_result(dtype: torch.dtype, factor: float) -> None:
    vectors, queries = torch.randn(300, 32).to(dtype), torch.randn(5, 32)
    max_norm = factor * float(vectors.double().norm(dim=1).amax())
    for narrow_copy in (True, False, None):
        known = ExactRecall(vectors, narrow_copy=narrow_copy, max_norm=max_norm)
        recall = ExactRecall(vectors, narrow_copy=narrow_copy)
        for some in (queries, queries[:1]):
            for got, expected in zip(known.search(some, 20), recall.search(some, 20), strict=True):
                assert torch.equal(got, expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
@pytest.mark.parametrize("count", [1, 9])
def test_a_search_refuses_what_is_not_finite(value: float, count: int) -> None:
    """With a bound on the norms, no vector is read before."""
    vectors = torch.eye(40)
    vectors[7, 3] = value
    recall = ExactRecall(vectors, narrow_copy=False, max_norm=1.0)
    with pytest.raises(ValueError, match="vectors must be finite"):
        recall.search(torch.ones(count, 40), 2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dim", [1, 3, 100, 2000])
def test_errors_of_narrow_vectors_are_bounded(kind: str, dim: int) -> None:
    """Numbers from the largest to those that vanish in float16."""
    sizes = 2.0 ** torch.randint(-30, 0, (300, dim))
    vectors = sizes * torch.randn(300, dim)
    vectors /= torch.linalg.vector_norm(vectors, dim=1).amax()
    query = torch.nn.functional.normalize(torch.randn(1, dim), dim=1)
    parts = functools.partial(vectors.split, 70)
    narrow: Any = {
        "ByteVectors": lambda: narrow_vectors.ByteVectors(parts, (300, dim)),
        "HalfVectors": lambda: narrow_vectors.HalfVectors(vectors.half()),
        "PackedVectors": lambda: narrow_vectors.PackedVectors(parts(), dim),
    }[kind]()
    _, chunks, bounds = zip(*narrow.scores(query), strict=True)
    errors = torch.cat(chunks, 1).double() - query.double() @ vectors.double().T
    bound = torch.cat(bounds) if kind == "ByteVectors" else bounds[0]
    # All may be moved by one number, as they are without the mean.
    assert (errors - bound).amax() < (errors + bound).amin()
    assert kind == "ByteVectors" or 0 < errors.abs().amax() < bound


@pytest.mark.parametrize("scale", [1e-25, 1e-170, 1e150], ids=str)
def test_vectors_whose_squares_vanish(scale: float) -> None:
    dtype = torch.float32 if scale == 1e-25 else torch.float64
    for _ in range(5):
        vectors = (scale * (1 + 1e-4 * torch.rand(300, 16, dtype=torch.float64))).to(dtype)
        queries = torch.ones(2, 16, dtype=dtype)
        recall = ExactRecall(vectors)
        for some in (queries, queries[:1]):
            assert torch.equal(recall.search(some, 5)[1], full_ranking(some, vectors, 5)[1])


@pytest.mark.parametrize("width", [48, 20])
def test_vectors_with_a_common_part_and_a_spike(width: int) -> None:
    """Where one factor for all of them would leave most in doubt."""
    vectors = torch.nn.functional.normalize(3 + torch.randn(700, width), dim=1)
    vectors[9] = 0
    vectors[9, 3] = 0.9
    recall, queries = ExactRecall(vectors), torch.randn(5, width)
    for i in range(5):
        found = recall.search(queries[i : i + 1], 20)[1]
        assert torch.equal(found, full_ranking(queries[i : i + 1], vectors, 20)[1])
    narrow = recall._narrow
    if isinstance(narrow, narrow_vectors.ByteVectors):
        others = torch.arange(700) != 9
        assert narrow.errors[others].amax() < 0.5 * narrow.errors[9]


@pytest.mark.parametrize("narrow_copy", [True, False])
def test_a_backend_chosen_for_a_gpu_does_not_matter(
    narrow_copy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was named for a model there; vectors are searched here."""
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "triton")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    vectors, queries = torch.randn(50, 16), torch.randn(1, 16)
    for some in (vectors, vectors.half()):
        found = ExactRecall(some, narrow_copy=narrow_copy).search(queries, 4)[1]
        assert torch.equal(found, full_ranking(queries, some, 4)[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf], ids=str)
def test_a_copy_hides_nothing_that_is_not_finite(value: float) -> None:
    vectors = torch.eye(48)
    vectors[7, 3] = value
    recall = ExactRecall(vectors, narrow_copy=True, max_norm=1.0)
    with pytest.raises(ValueError, match="vectors must be finite"):
        recall.search(torch.ones(1, 48), 2)


def test_ids() -> None:
    ids = ["a.mp4", ("b", 2), 7]
    scores, found = ExactRecall(torch.eye(3), ids).search(torch.tensor([[1.0, 3.0, 2.0]]), 2)
    assert found == [[("b", 2), 7]] and scores.tolist() == [[3.0, 2.0]]
    numbers = ExactRecall(torch.eye(3), torch.tensor([30, 20, 10]))
    assert numbers.search(torch.eye(3), 1)[1] == [[30], [20], [10]]


@pytest.mark.slow(seconds=4)
def test_one_query_does_not_wait_for_numba(run_python: Callable[..., Any]) -> None:
    """Vectors in half precision are read as they are; to import numba takes a second."""
    code = """
        import sys, torch
        from muse_adapter import ExactRecall
        eye = torch.eye(16)
        found = ExactRecall(eye.half()).search(eye[3:4], 1)[1].item()
        print(found, "numba" in sys.modules)
    """
    done = run_python(code)
    assert done.stdout.split() == ["3", "False"], done.stderr


def test_mapped_file_is_read_in_place(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy", reason="needs numpy")
    vectors = numpy.random.default_rng(0).standard_normal((50, 8)).astype(numpy.float16)
    numpy.save(tmp_path / "v.npy", vectors)
    mapped = numpy.load(tmp_path / "v.npy", mmap_mode="r")
    recall = ExactRecall(mapped)
    assert recall.vectors.data_ptr() == mapped.ctypes.data
    expected = full_ranking(torch.tensor(vectors[:2]), torch.tensor(vectors), 3)[1]
    assert torch.equal(recall.search(vectors[:2], 3)[1], expected) and len(recall) == 50


def test_zero_vectors_and_no_query() -> None:
    recall = ExactRecall(torch.zeros(4, 3))
    assert recall.search(torch.ones(1, 3), 2)[1].tolist() == [[0, 1]]
    assert recall.search(torch.zeros(2, 3), 9)[1].tolist() == [[0, 1, 2, 3]] * 2
    scores, positions = recall.search(torch.zeros(0, 3), 2)
    assert scores.shape == positions.shape == (0, 2)


EYE = torch.eye(3)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "integers": (lambda: ExactRecall(EYE.long()), TypeError, "vectors must be a floating-point"),
    "shape": (lambda: ExactRecall(EYE[0]), ValueError, r"\(rows, D\), got \(3,\)"),
    "empty": (lambda: ExactRecall(EYE[:0]), ValueError, "at least one row"),
    "NaN": (lambda: ExactRecall(EYE / 0), ValueError, "vectors must be finite"),
    "few ids": (lambda: ExactRecall(EYE, [1, 2]), ValueError, "one id for each of 3 rows, got 2"),
    "equal ids": (lambda: ExactRecall(EYE, [1, 2, 1]), ValueError, "ids must differ"),
    "norm": (lambda: ExactRecall(EYE, max_norm=-1.0), ValueError, "max_norm must be .*, got -1.0"),
    "NaN norm": (lambda: ExactRecall(EYE, max_norm=torch.nan), ValueError, "max_norm .* got nan"),
    "width": (
        lambda: ExactRecall(EYE).search(torch.eye(2), 1),
        ValueError,
        "width of the vectors, 3, got 2",
    ),
    "k": (lambda: ExactRecall(EYE).search(EYE, 0), ValueError, "k must be at least 1, got 0"),
    "k's type": (lambda: ExactRecall(EYE).search(EYE, 1.5), TypeError, "k must be an int"),
    "NaN query": (
        lambda: ExactRecall(EYE).search(EYE / 0, 1),
        ValueError,
        "queries must be finite",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_is_exact_where_products_are_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16, as torch may compute them after the call, on processors that can."""

    def narrow(x: Tensor, weight: Tensor) -> Tensor:
        return F.linear(x.bfloat16().float(), weight.bfloat16().float())

    monkeypatch.setattr(exact_recall, "linear", narrow)
    # Of one direction, so that bfloat16 leaves few different scores.
    vectors = torch.randn(1, 16) + 1e-3 * torch.randn(500, 16)
    queries = torch.randn(8, 16)
    order = full_ranking(queries, vectors, 5)[1]
    recall = ExactRecall(vectors, narrow_copy=False)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        assert not torch.equal(recall.search(queries, 5)[1], order), "the products are narrowed"
        torch.set_float32_matmul_precision("medium")
        assert torch.equal(recall.search(queries, 5)[1], order)
    finally:
        torch.set_float32_matmul_precision(before)
