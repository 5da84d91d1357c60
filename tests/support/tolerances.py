"""Tolerances of the tests, one table per dtype, and the comparison that applies them.

Every bound is on max|got - expected| / max|expected|.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Tolerances(NamedTuple):
    """Bounds for one dtype, where the same mathematics runs in another order or on other shapes.

    Attributes:
        rounding: A handful of operations: a mean, a norm, one matrix product.
        values: A whole head or mixer: about a hundred operations in a row.
        gradients: Its gradients, which pass them twice and sum over all tokens.
    """

    rounding: float
    values: float
    gradients: float


TOLERANCES = {
    # Half a unit in the last place is 1e-16. The masks' contract is 1e-12 for the values.
    torch.float64: Tolerances(rounding=1e-14, values=1e-12, gradients=1e-11),
    # Half a unit in the last place is 6e-8; the official code is 1e-6 from its float64 values.
    torch.float32: Tolerances(rounding=1e-6, values=1e-5, gradients=1e-5),
    # 5e-4 and 4e-3 per rounding, and the residual stream is rounded at every layer.
    torch.float16: Tolerances(rounding=2e-3, values=5e-2, gradients=5e-2),
    torch.bfloat16: Tolerances(rounding=1.6e-2, values=5e-2, gradients=5e-2),
}

# Golden files, by the dtype of the run and the dtype of the stored tensor.
GOLDEN = {
    # The same formulas in the same precision: only the order of sums differs.
    (torch.float64, torch.float64): 1e-9,
    # The stored values were rounded to 24 bits: 6e-8 of each value.
    (torch.float64, torch.float32): 2e-7,
    # About a hundred roundings of 6e-8; the official code itself is 1e-6 from its float64 values.
    (torch.float32, torch.float64): 1e-5,
    (torch.float32, torch.float32): 1e-5,
}


def relative_error(got: Tensor, expected: Tensor) -> float:
    """Compute max|got - expected| / max|expected|, or the difference alone if that is zero."""
    assert got.shape == expected.shape, f"got shape {got.shape}, expected {expected.shape}"
    got, expected = got.detach().double(), expected.detach().double()
    difference = (got - expected).abs().max().item()
    return difference / (expected.abs().max().item() or 1.0)


def assert_close(
    got: Tensor,
    expected: Tensor,
    kind: str = "values",
    *,
    dtype: torch.dtype | None = None,
    name: str = "",
) -> None:
    """Assert that two tensors agree within the table.

    Args:
        got: Any shape.
        expected: The same shape.
        kind: Column of the table: "rounding", "values" or "gradients".
        dtype: Row of the table; None: the dtype of `got`.
        name: Start of the message.
    """
    bound = getattr(TOLERANCES[dtype or got.dtype], kind)
    error = relative_error(got, expected)
    # "not <=" also catches NaN.
    assert error <= bound, f"{name} is off by {error:.2e}, allowed {bound:.0e}"
