"""Unit vectors."""

from __future__ import annotations

import pytest
import torch

from muse_adapter.layers.pairs import unit, unit_vector


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
def test_unit_vector_is_unit(dtype: torch.dtype, scale: float) -> None:
    """Squares of the entries vanish or overflow in float32."""
    x = (torch.randn(64, dtype=torch.float64).clamp(-2, 2) * scale).to(dtype)
    got = unit_vector(x)
    assert got.dtype == torch.promote_types(dtype, torch.float32)
    torch.testing.assert_close(got, unit(x), rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(got.norm(), got.new_tensor(float(bool(x.any()))))
