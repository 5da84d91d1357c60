"""The largest inner products, and those with vectors in int8, against plain formulas in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops import backends, byte_products, top_products
from muse_adapter.ops.top_vectors_inputs import NotFiniteError

BACKENDS = [
    pytest.param(name, marks=[pytest.mark.skipif(bool(status.reason), reason=str(status.reason))])
    for name, status in backends("cpu").items()
    if name in ("torch", "numba")
]
EACH = pytest.mark.parametrize("backend", BACKENDS)

pytestmark = pytest.mark.usefixtures("nan_memory")


def plain(vectors: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Sort all inner products."""
    kind = torch.promote_types(vectors.dtype, torch.float32)
    exact = (vectors.double()[None] * queries.double()[:, None]).sum(2).to(kind)
    best, order = exact.sort(dim=1, descending=True, stable=True)
    return best[:, :k], order[:, :k]


def queries_for(dtype: torch.dtype, *shape: int) -> Tensor:
    """Draw queries in the type that vectors of `dtype` ask for."""
    return torch.randn(shape, dtype=torch.promote_types(dtype, torch.float32))


def check(vectors: Tensor, queries: Tensor, k: int, backend: str, error: float) -> None:
    """Compare, with scores that are wrong by up to the error times a factor."""
    exact = queries.double() @ vectors.double().T
    wrong = 3 * exact + error * (2 * torch.rand_like(exact) - 1) * 0.99
    scores = wrong.to(torch.promote_types(vectors.dtype, torch.float32))
    got, found = top_products(vectors, queries, scores, k, error=1.01 * error, backend=backend)
    best, order = plain(vectors, queries, k)
    assert torch.equal(found, order) and got.dtype == best.dtype
    torch.testing.assert_close(got, best, rtol=1e-6, atol=1e-12)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("width", [16, 48, 20])
@pytest.mark.parametrize("error", [1e-5, 0.3, 1e3], ids=["few", "some", "all in doubt"])
def test_top_products(backend: str, dtype: torch.dtype, width: int, error: float) -> None:
    vectors, queries = torch.randn(200, width).to(dtype), queries_for(dtype, 3, width)
    for k in (1, 2, 17, 200):
        check(vectors, queries, k, backend, error)
    check(torch.cat([vectors] * 2, 1)[::2, width:], queries, 9, backend, error)
    check(vectors.T.contiguous().T, queries, 9, backend, error)
    check(vectors[:1], queries[:1], 1, backend, error)


@EACH
def test_equal_products_stand_in_order(backend: str) -> None:
    """All are equal, and all in doubt."""
    vectors = torch.ones(3000, 16)
    queries = torch.ones(2, 16)
    queries[1] = -1
    for k in (1, 50, 3000):
        scores = queries @ vectors.T
        _, found = top_products(vectors, queries, scores, k, error=0.1, backend=backend)
        assert torch.equal(found, torch.arange(k).expand(2, k))


@EACH
def test_threads_change_nothing(backend: str) -> None:
    vectors, queries = torch.randn(70_000, 16), torch.randn(5, 16)
    scores = queries @ vectors.T
    expected = top_products(vectors, queries, scores, 10, error=1e-3, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        got = top_products(vectors, queries, scores, 10, error=1e-3, backend=backend)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(*pair) for pair in zip(got, expected, strict=True))
    assert torch.equal(got[1], plain(vectors, queries, 10)[1])


@EACH
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf], ids=str)
@pytest.mark.parametrize("query", [0, 1])
def test_refuses_scores_that_are_not_finite(backend: str, value: float, query: int) -> None:
    vectors, queries = torch.randn(40, 16), torch.randn(2, 16)
    scores = queries @ vectors.T
    scores[query, 33] = value
    with pytest.raises(NotFiniteError, match="vectors must be finite"):
        top_products(vectors, queries, scores, 40, error=1e-3, backend=backend)


@EACH
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64], ids=str)
def test_an_error_for_each_vector(backend: str, dtype: torch.dtype) -> None:
    """Those with a large error may be anywhere, and all scores are moved."""
    vectors, queries = torch.randn(200, 16).to(dtype), queries_for(dtype, 3, 16)
    errors = torch.where(torch.arange(200) % 9 == 0, 5.0, 1e-3)
    exact = queries.double() @ vectors.double().T
    wrong = exact + 0.99 * errors * (2 * torch.rand_like(exact) - 1) - 7
    scores = wrong.to(torch.promote_types(dtype, torch.float32))
    for k in (1, 20, 200):
        got = top_products(vectors, queries, scores, k, error=errors, backend=backend)
        assert torch.equal(got[1], plain(vectors, queries, k)[1])


@EACH
@pytest.mark.parametrize("vector", [torch.full((16,), 1e38), torch.full((16,), torch.nan)])
def test_refuses_products_that_are_not_finite(backend: str, vector: Tensor) -> None:
    vectors = torch.ones(4, 16)
    vectors[2] = vector
    queries = torch.full((1, 16), -10.0)
    with pytest.raises(NotFiniteError):
        top_products(vectors, queries, torch.ones(1, 4), 3, error=0.1, backend=backend)


@EACH
def test_narrowed_products_do_not_matter(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of float32 in bfloat16, as torch may compute them, on processors that can."""
    matmul = Tensor.__matmul__

    def narrow(x: Tensor, y: Tensor) -> Tensor:
        if x.dtype == torch.float32:
            x, y = x.bfloat16().float(), y.bfloat16().float()
        return matmul(x, y)

    numbers = torch.randint(-127, 128, (9, 20), dtype=torch.int8)
    queries = torch.randn(2, 20)
    exact = F.normalize(queries.double(), eps=1e-99) @ numbers.double().T
    monkeypatch.setattr(Tensor, "__matmul__", narrow)
    got = byte_products(numbers, torch.ones(9), queries, backend=backend)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-3)


@EACH
@pytest.mark.parametrize("width", [16, 80, 20])
@pytest.mark.parametrize("count", [1, 7, 1200])
def test_byte_products(backend: str, width: int, count: int) -> None:
    numbers = torch.randint(-128, 128, (count, width), dtype=torch.int8)
    scales, queries = torch.rand(count) + 0.1, torch.randn(3, width)
    queries[1:] *= torch.tensor([[1e30], [1e-30]])  # their squares overflow and vanish in float32
    units = F.normalize(queries.double(), eps=1e-99)
    exact = (units @ numbers.double().T) * scales.double()
    size = (units.abs() @ numbers.double().abs().T) * scales.double()
    threads = torch.get_num_threads()
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            for some in (numbers, numbers.T.contiguous().T):
                got = byte_products(some, scales, queries, backend=backend)
                assert got.dtype == torch.float32 and got.shape == (3, count)
                assert ((got - exact).abs() <= 1e-6 * size).all()
    finally:
        torch.set_num_threads(threads)
    assert byte_products(numbers[:0], scales[:0], queries, backend=backend).shape == (3, 0)
    assert byte_products(numbers, scales, queries[:0], backend=backend).shape == (0, count)


def call(**changed: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {
        "vectors": torch.ones(4, 16),
        "queries": torch.ones(2, 16),
        "scores": torch.ones(2, 4),
        "k": 2,
        "error": 0.1,
        **changed,
    }
    return lambda: top_products(**arguments)


def call_bytes(**changed: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {
        "numbers": torch.ones(4, 16, dtype=torch.int8),
        "scales": torch.ones(4),
        "queries": torch.ones(2, 16),
        **changed,
    }
    return lambda: byte_products(**arguments)


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "vectors": (call(vectors=torch.ones(4)), ValueError, r"vectors must have shape \(N, D\)"),
    "integers": (call(vectors=torch.ones(4, 16).int()), TypeError, "vectors must be of a real"),
    "queries": (call(queries=torch.ones(2, 17)), ValueError, r"queries .* \(2, 16\)"),
    "queries' type": (
        call(queries=torch.ones(2, 16).double()),
        TypeError,
        "queries must be torch.float32 for vectors in torch.float32, got torch.float64",
    ),
    "no query": (
        call(queries=torch.ones(0, 16), scores=torch.ones(0, 4)),
        ValueError,
        "queries must have no size 0",
    ),
    "scores": (call(scores=torch.ones(2, 5)), ValueError, r"scores must have shape \(2, 4\)"),
    "scores' type": (call(scores=torch.ones(2, 4).half()), TypeError, "scores must be float32"),
    "k": (call(k=5), ValueError, "k must be from 1 to the number of vectors, 4, got 5"),
    "k of 0": (call(k=0), ValueError, "got 0"),
    "error": (call(error=-1.0), ValueError, "error must be finite and not negative, got -1.0"),
    "NaN": (call(error=float("nan")), ValueError, "error must be finite"),
    "errors": (call(error=torch.ones(3)), ValueError, r"error must have shape \(4,\)"),
    "errors' type": (call(error=torch.ones(4).double()), TypeError, "error must be float32"),
    "bytes": (call_bytes(numbers=torch.ones(4, 16)), TypeError, "numbers must be int8"),
    "scales": (call_bytes(scales=torch.ones(3)), ValueError, r"scales must have shape \(4,\)"),
    "width": (call_bytes(queries=torch.ones(2, 8)), ValueError, r"queries .* \(2, 16\)"),
    "double": (call_bytes(queries=torch.ones(2, 16).double()), TypeError, "must be float32"),
}


@pytest.mark.parametrize(("run", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(run: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run()
