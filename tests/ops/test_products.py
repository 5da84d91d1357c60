"""Products of tokens and of their weighted sums against plain formulas in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from muse_adapter.ops import backends, pooled_products, token_products, use_backend
from muse_adapter.ops import rows as rows_module

BACKENDS = [
    pytest.param(name, marks=[pytest.mark.skipif(bool(status.reason), reason=str(status.reason))])
    for name, status in backends("cpu").items()
    if name in ("torch", "numba")
]
EACH = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]

pytestmark = pytest.mark.usefixtures("nan_memory")


def check(rows: list[Tensor] | Tensor, vector: Tensor, backend: str, bound: float) -> None:
    tokens = torch.stack(list(rows)).flatten(1, -2).double()
    expected = tokens @ vector.double(), tokens.norm(dim=2)
    for got, exact in zip(token_products(rows, vector, backend=backend), expected, strict=True):
        assert got.dtype == (torch.float64 if rows[0].dtype == torch.float64 else torch.float32)
        torch.testing.assert_close(got.double(), exact, rtol=bound, atol=bound * 20)


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 48, 20])
@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5)], ids=str)
def test_products(backend: str, dtype: torch.dtype, width: int, shape: tuple[int, ...]) -> None:
    rows = torch.randn(9, *shape, width, dtype=torch.float64).to(dtype)
    vector = torch.randn(width, dtype=torch.float64).to(torch.promote_types(dtype, torch.float32))
    bound = 1e-14 if dtype == torch.float64 else 1e-6
    check(rows, vector, backend, bound)
    check([rows[4], rows[0], rows[8]], vector, backend, bound)
    check(rows.transpose(0, 1) if len(shape) > 1 else rows[::2], vector, backend, bound)


@EACH
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("width", [16, 48, 20])
@pytest.mark.parametrize("count", [1, 3])
def test_pooled(backend: str, dtype: torch.dtype, width: int, count: int) -> None:
    rows = torch.randn(9, 2, 5, width, dtype=torch.float64).to(dtype)
    rows[2, 0, 1] = 0
    wide = torch.promote_types(dtype, torch.float32)
    weights = torch.randn(9, count, 10, dtype=torch.float64).to(wide)
    queries = torch.randn(count, width, dtype=torch.float64).to(wide)
    tokens = rows.flatten(1, 2).double()
    sums = weights.double() @ torch.nn.functional.normalize(tokens, dim=2)
    expected = (sums * queries.double()).sum(2), sums.square().sum(2), tokens.norm(dim=2)
    bound = 1e-13 if dtype == torch.float64 else 1e-5
    for given in (rows, list(rows), list(rows.transpose(2, 3).contiguous().transpose(2, 3))):
        got = pooled_products(given, weights, queries, backend=backend)
        for ours, exact in zip(got, expected, strict=True):
            assert ours.dtype == wide
            torch.testing.assert_close(ours.double(), exact, rtol=bound, atol=bound)


@EACH
def test_group_and_threads_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vector = torch.randn(40, 60, 512).half(), torch.randn(512)
    weights, queries = torch.randn(40, 2, 60), torch.randn(2, 512)

    def run(rows: list[Tensor] | Tensor) -> tuple[Tensor, ...]:
        pooled = pooled_products(rows, weights, queries, backend=backend)
        return *token_products(rows, vector, backend=backend), *pooled

    expected = run(rows)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        got = run(list(rows))
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(rows_module, "_GROUP_NUMBERS", 1)
    for one in (got, run(rows)):
        for ours, theirs in zip(one, expected, strict=True):
            torch.testing.assert_close(ours, theirs)


@EACH
def test_special_values_of_half_precision(backend: str) -> None:
    """The largest and smallest numbers are exact, and infinity and NaN stay what they are."""
    special = [65504.0, 2.0**-24, -(2.0**-14), 0.0, -torch.inf, torch.nan]
    rows = torch.zeros(1, len(special), 16, dtype=torch.float16)
    rows[0, :, 3] = torch.tensor(special)
    products, norms = token_products(rows, torch.ones(16), backend=backend)
    torch.testing.assert_close(products[0], torch.tensor(special), rtol=0, atol=0, equal_nan=True)
    expected = torch.tensor(special).abs()
    torch.testing.assert_close(norms[0], expected, rtol=1e-7, atol=0, equal_nan=True)


@EACH
def test_gradients(backend: str) -> None:
    """The kernel has none: torch computes then."""
    rows = torch.randn(2, 3, 16).half().requires_grad_()
    leaves = [torch.randn(shape, requires_grad=True) for shape in ((16,), (2, 1, 3), (1, 16))]
    vector, weights, queries = leaves
    wide = rows.float()
    sums = weights @ torch.nn.functional.normalize(wide, dim=2)
    norms = wide.norm(dim=2)
    with use_backend(backend):
        pairs = [
            (token_products(rows, vector), (wide @ vector, norms), [rows, vector]),
            (
                pooled_products(rows, weights, queries),
                ((sums * queries).sum(2), sums.square().sum(2), norms),
                [rows, weights, queries],
            ),
        ]
    for got, expected, inputs in pairs:
        totals = [torch.stack([part.sum() for part in parts]).sum() for parts in (got, expected)]
        gradients = [torch.autograd.grad(total, inputs, retain_graph=True) for total in totals]
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs)


HALF = torch.zeros(2, 3, 16, dtype=torch.float16)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "none": (lambda: token_products([], torch.zeros(16)), ValueError, "at least one"),
    "integers": (lambda: token_products(HALF.long(), torch.zeros(16)), TypeError, "floating type"),
    "one axis": (lambda: token_products(HALF[0], torch.zeros(16)), ValueError, r"\(\.\.\., D\)"),
    "width": (lambda: token_products(HALF, torch.zeros(8)), ValueError, r"shape \(16,\), got \(8,"),
    "queries": (
        lambda: pooled_products(HALF, torch.zeros(2, 1, 3), torch.zeros(1, 8)),
        ValueError,
        r"queries must have shape \(1, 16\)",
    ),
    "weights": (
        lambda: pooled_products(HALF, torch.zeros(2, 2, 3), torch.zeros(1, 16)),
        ValueError,
        r"weights must have shape \(2, 1, 3\)",
    ),
    "shapes": (
        lambda: token_products([HALF[0], HALF[1, :2]], torch.zeros(16)),
        ValueError,
        r"of one shape, type and device, got \(3, 16\) .*rows\[1\] \(2, 16\)",
    ),
    "types": (
        lambda: token_products([HALF[0], HALF[1].float()], torch.zeros(16)),
        ValueError,
        r"of one shape, type and device.*rows\[1\] .*float32",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), WRONG.values(), ids=WRONG.keys())
def test_refuses(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()
