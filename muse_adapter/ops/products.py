"""Products of stored tokens with a vector, and norms of the tokens, in one pass over them."""

from __future__ import annotations

from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_tensor
from muse_adapter.ops.choice import choose
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.rows import Rows


def token_products(
    rows: Rows, vector: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor]:
    """Multiply tokens with a vector, and compute their norms.

    Tokens are read where they lie and in their own type; all sums are in float32, or in float64 for
    float64 tokens.

    Args:
        rows: (K, ..., D), or K tensors (..., D) of one shape, type and device; K is at least 1.
        vector: (D,).
        backend: Name of a backend; None chooses.

    Returns:
        Products and norms (K, N), with N tokens in each row.

    Raises:
        ValueError: Shapes that do not fit, an unknown backend.
        TypeError: Tensors that are not of floating type.
        RuntimeError: The backend asked for cannot run.
    """
    first = _check_rows(rows)
    check_tensor("vector", vector, (first.shape[-1],), ("rows[0]", first))
    vector = vector.to(state_dtype(first))
    with without_autocast(first.device.type):
        return choose(first.device, backend).token_products(rows, vector)


def _check_rows(rows: Rows) -> Tensor:
    """Refuse rows that are not alike, since kernels read by address; return the first."""
    if not len(rows):
        raise ValueError("rows must be at least one, got none")
    first = rows[0]
    check_tensor("rows[0]", first, None, ("rows[0]", first))
    if first.dim() < 2 or not first.shape[-1]:
        raise ValueError(f"rows must be tensors (..., D), D > 0, got shape {tuple(first.shape)}")
    if not isinstance(rows, Tensor):
        shape, dtype, device = first.shape, first.dtype, first.device
        for index, row in enumerate(rows):
            if row.shape != shape or row.dtype != dtype or row.device != device:
                raise ValueError(
                    f"rows must be of one shape, type and device, got {tuple(shape)} {dtype} "
                    f"{device} and rows[{index}] {tuple(row.shape)} {row.dtype} {row.device}"
                )
    return first
