"""Products of stored tokens, and of their weighted sums, with vectors, in one pass over them."""

from __future__ import annotations

from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_tensor
from muse_adapter.ops.choice import choose
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.rows import Rows, held, source


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
    rows = held(rows)
    first = _check_rows(rows)
    check_tensor("vector", vector, (first.shape[-1],), ("rows[0]", first))
    vector = vector.to(state_dtype(first))
    with without_autocast(first.device.type):
        return choose(first.device, backend).token_products(rows, vector)


def pooled_products(
    rows: Rows, weights: Tensor, queries: Tensor, *, backend: str | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sum tokens at unit norm by weights, and multiply each sum with its query and with itself.

    Tokens are read as in `token_products`. A sum is finite if the norms of its tokens are: neither
    0, unless the token's weight is 0, nor infinite or NaN.

    Args:
        rows: As in `token_products`.
        weights: (K, W, N), for W sums of the N tokens in each row.
        queries: (W, D), a vector for each sum.
        backend: Name of a backend; None chooses.

    Returns:
        Norms of the tokens (K, N), products of the sums with their queries (K, W), and squared
        norms of the sums (K, W).

    Raises:
        ValueError: As for `token_products`.
        TypeError: As for `token_products`.
        RuntimeError: As for `token_products`.
    """
    rows = held(rows)
    first = _check_rows(rows)
    like = "rows[0]", first
    sums, tokens = weights.shape[1] if weights.dim() == 3 else 1, first[..., 0].numel()
    check_tensor("weights", weights, (len(rows), sums, tokens), like)
    check_tensor("queries", queries, (sums, first.shape[-1]), like)
    dtype = state_dtype(first)
    with without_autocast(first.device.type):
        chosen = choose(first.device, backend)
        return chosen.pooled_products(rows, weights.to(dtype), queries.to(dtype))


def _check_rows(rows: Rows) -> Tensor:
    """Refuse rows that are not alike, since kernels read by address; return the first."""
    if not len(rows):
        raise ValueError("rows must be at least one, got none")
    first = rows[0]
    check_tensor("rows[0]", first, None, ("rows[0]", first))
    if first.dim() < 2 or not first.shape[-1]:
        raise ValueError(f"rows must be tensors (..., D), D > 0, got shape {tuple(first.shape)}")
    if (found := source(rows)) is not None:
        array, positions = found
        if not 0 <= min(positions) <= max(positions) < len(array):
            raise ValueError(f"positions of rows must lie between 0 and {len(array) - 1}")
    elif not isinstance(rows, Tensor):
        shape, dtype, device = first.shape, first.dtype, first.device
        for index, row in enumerate(rows):
            if row.shape != shape or row.dtype != dtype or row.device != device:
                raise ValueError(
                    f"rows must be of one shape, type and device, got {tuple(shape)} {dtype} "
                    f"{device} and rows[{index}] {tuple(row.shape)} {row.dtype} {row.device}"
                )
    return first
