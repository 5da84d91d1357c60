"""Products and norms of tokens against plain formulas in float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence

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


def check(rows: Sequence[Tensor] | Tensor, vector: Tensor, backend: str, bound: float) -> None:
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
@pytest.mark.parametrize(("shape", "sums"), [((1,), 1), ((7,), 2), ((3, 5), 3)], ids=str)
def test_pooled_products(
    backend: str, dtype: torch.dtype, width: int, shape: tuple[int, ...], sums: int
) -> None:
    rows = torch.randn(9, *shape, width, dtype=torch.float64).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    queries = torch.randn(sums, width, dtype=wide)
    tokens = rows.double().flatten(1, -2)
    weights = torch.rand(9, sums, tokens.shape[1], dtype=wide)
    if tokens.shape[1] > 1:
        weights[2, :, 0] = 0  # then its norm may be 0
        rows[2].view(-1, width)[0] = tokens[2, 0] = 0
    before = weights.clone()
    norms = tokens.norm(dim=2)
    pooled = weights.double() @ torch.where(norms[..., None] == 0, 0, tokens / norms[..., None])
    expected = norms, (pooled * queries.double()).sum(2), pooled.square().sum(2)
    bound = 1e-13 if dtype == torch.float64 else 2e-6
    for given in (rows, list(rows), rows.transpose(0, -2).contiguous().transpose(0, -2)):
        got = pooled_products(given, weights, queries, backend=backend)
        for ours, exact in zip(got, expected, strict=True):
            assert ours.dtype == wide
            torch.testing.assert_close(ours.double(), exact, rtol=bound, atol=bound * 20)
    assert torch.equal(weights, before)


@EACH
def test_group_and_threads_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, vector = torch.randn(40, 60, 512).half(), torch.randn(512)
    expected = token_products(rows, vector, backend=backend)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        got = token_products(list(rows), vector, backend=backend)
    finally:
        torch.set_num_threads(threads)
    monkeypatch.setattr(rows_module, "_GROUP_NUMBERS", 1)
    for one in (got, token_products(rows, vector, backend=backend)):
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
    vector = torch.randn(16, requires_grad=True)
    with use_backend(backend):
        got = token_products(rows, vector)
    wide = rows.float()
    expected = wide @ vector, wide.norm(dim=2)
    totals = [products.sum() + norms.sum() for products, norms in (got, expected)]
    gradients = [torch.autograd.grad(total, (rows, vector)) for total in totals]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


HALF = torch.zeros(2, 3, 16, dtype=torch.float16)
WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "none": (lambda: token_products([], torch.zeros(16)), ValueError, "at least one"),
    "integers": (lambda: token_products(HALF.long(), torch.zeros(16)), TypeError, "floating type"),
    "one axis": (lambda: token_products(HALF[0], torch.zeros(16)), ValueError, r"\(\.\.\., D\)"),
    "no width": (lambda: token_products(HALF[..., :0], torch.zeros(0)), ValueError, "D > 0"),
    "width": (lambda: token_products(HALF, torch.zeros(8)), ValueError, r"shape \(16,\), got \(8,"),
    "weights": (
        lambda: pooled_products(HALF, torch.zeros(2, 1, 4), torch.zeros(1, 16)),
        ValueError,
        r"weights must have shape \(2, 1, 3\), got \(2, 1, 4\)",
    ),
    "queries": (
        lambda: pooled_products(HALF, torch.zeros(2, 1, 3), torch.zeros(2, 16)),
        ValueError,
        r"queries must have shape \(1, 16\), got \(2, 16\)",
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


class MadeWhenAsked(Sequence[Tensor]):
    """Tensors that nobody else holds."""

    def __init__(self, array: Tensor) -> None:
        self.of = array

    def __len__(self) -> int:
        return len(self.of)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        return self.of[index].clone()


@EACH
def test_rows_that_are_made_when_they_are_asked_for(backend: str) -> None:
    rows = torch.randn(50, 7, 16).half()
    check(MadeWhenAsked(rows), torch.randn(16), backend, 1e-6)


@pytest.mark.parametrize("positions", [[0, 10**9], [-1, 2], [3]], ids=str)
def test_positions_outside_of_their_array(positions: list[int]) -> None:
    rows = MadeWhenAsked(torch.zeros(2, 7, 16))
    rows.array, rows.positions = torch.zeros(3, 7, 16), positions  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="positions of rows must lie between 0 and 2"):
        token_products(rows, torch.zeros(16))
