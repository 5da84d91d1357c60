"""The largest inner products, exactly, from scores that are nearly right."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.choice import choose
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.top_vectors_inputs import TopProductsInputs


def top_products(
    vectors: Tensor,
    queries: Tensor,
    scores: Tensor,
    k: int,
    *,
    error: float | Tensor,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Find the vectors with the k largest inner products.

    Every vector that may be among the k best, by its score and the error, is scored again by
    itself, in float64, and that decides: a result depends neither on the scores nor on the other
    queries. Without gradients.

    Args:
        vectors: (N, D), floating point.
        queries: (A, D), at least one, in float32, or float64 for float64 vectors.
        scores: (A, N) float32 or float64, the inner products up to `error`; those of a query may
            be times a positive number, and all moved by another number.
        k: 1 to N.
        error: The largest error of a score, not negative; a number, or one for each vector (N,)
            float32.
        backend: Name of a backend; None chooses.

    Returns:
        Inner products (A, k), best first, in float32, or float64 for float64 vectors, and positions
        (A, k) int64; products that are equal in that type stand in the order of the vectors.

    Raises:
        ValueError: Shapes or devices that do not fit, `k` or `error` out of range, no query, an
            unknown backend.
        NotFiniteError: A score that counts, or an inner product, is NaN or infinite. It is a
            ValueError.
        TypeError: Tensors of other types.
        RuntimeError: The backend asked for cannot run.
    """
    like = ("vectors", vectors)
    count, width = check_rank("vectors", vectors, "N", "D")
    check_tensor("vectors", vectors, None, like)
    number, _ = check_rank("queries", queries, "A", "D")
    check_tensor("queries", queries, (number, width), like)
    check_tensor("scores", scores, (number, count), like)
    kind = state_dtype(vectors)
    if queries.dtype != kind:
        raise TypeError(
            f"queries must be {kind} for vectors in {vectors.dtype}, got {queries.dtype}"
        )
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores must be float32 or float64, got {scores.dtype}")
    if not number or not width:
        raise ValueError(f"queries must have no size 0, got shape {tuple(queries.shape)}")
    if not 1 <= k <= count:
        raise ValueError(f"k must be from 1 to the number of vectors, {count}, got {k}")
    if isinstance(error, Tensor):
        check_tensor("error", error, (count,), like)
        if error.dtype != torch.float32:
            raise TypeError(f"error must be float32, got {error.dtype}")
    elif not 0 <= error < float("inf"):
        raise ValueError(f"error must be finite and not negative, got {error}")
    else:
        limits = torch.finfo(scores.dtype)  # a larger one leaves all in doubt, as the largest does
        error = scores.new_full((1,), min(max(error, limits.tiny), limits.max)).expand(count)
    inputs = TopProductsInputs(vectors, queries, scores, error, k)
    with without_autocast(vectors.device.type):
        return choose(vectors.device, backend, only_here=True).top_products(inputs)
