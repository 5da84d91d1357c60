"""Inner products with vectors that are stored in int8."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_rank, check_tensor
from muse_adapter.ops.choice import choose


def byte_products(
    numbers: Tensor, scales: Tensor, queries: Tensor, *, backend: str | None = None
) -> Tensor:
    """Multiply queries at unit norm with vectors in int8, (unit(queries) @ numbers.T) * scales.

    Without gradients.

    Args:
        numbers: (N, D) int8.
        scales: (N,) float32.
        queries: (A, D) float32.
        backend: Name of a backend; None chooses.

    Returns:
        (A, N) float32.

    Raises:
        ValueError: Shapes or devices that do not fit, an unknown backend.
        TypeError: Tensors of other types.
        RuntimeError: The backend asked for cannot run.
    """
    count, width = check_rank("numbers", numbers, "N", "D")
    if numbers.dtype != torch.int8:
        raise TypeError(f"numbers must be int8, got {numbers.dtype}")
    rows, _ = check_rank("queries", queries, "A", "D")
    for name, tensor, shape in (("scales", scales, (count,)), ("queries", queries, (rows, width))):
        check_tensor(name, tensor, shape, ("numbers", numbers))
        if tensor.dtype != torch.float32:
            raise TypeError(f"{name} must be float32, got {tensor.dtype}")
    with without_autocast(numbers.device.type):
        return choose(numbers.device, backend, only_here=True).byte_products(
            numbers, scales, queries
        )
