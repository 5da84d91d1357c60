"""Unit vectors."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.ops.unit import unit


@pytest.mark.parametrize(
    ("dtype", "scale"),
    [
        *((torch.float16, scale) for scale in (0.0, 1e-5, 1.0, 1e4)),
        *((torch.bfloat16, scale) for scale in (0.0, 1e-38, 1.0, 1e30)),
        *((torch.float32, scale) for scale in (0.0, 1e-38, 1e-20, 1.0, 1e30)),
        *((torch.float64, scale) for scale in (0.0, 1e-300, 1.0, 1e300)),
    ],
    ids=str,
)
def test_unit(dtype: torch.dtype, scale: float) -> None:
    """Squares of the entries vanish or overflow in float32, and in float64."""
    x = (torch.randn(3, 64, dtype=torch.float64).clamp(-2, 2) * scale).to(dtype)
    got = unit(x)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    exact = x.double() / scale if scale else x.double()
    exact = torch.nn.functional.normalize(exact, dim=1)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-7)
