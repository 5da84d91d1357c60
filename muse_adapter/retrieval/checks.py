"""Checks of similarity matrices, from torch or numpy."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor


def as_matrix(name: str, rows: str, given: Any) -> Tensor:
    """Return a checked matrix (rows, videos), detached."""
    matrix = from_numpy(given)
    if not isinstance(matrix, Tensor):
        raise TypeError(
            f"{name} must be a torch tensor or a numpy array, got {type(given).__name__}"
        )
    if not matrix.is_floating_point():
        raise TypeError(f"{name} must be floating point, got {matrix.dtype}")
    if matrix.dim() != 2 or matrix.numel() == 0:
        raise ValueError(
            f"{name} must have shape ({rows}, videos), neither of them 0, got {tuple(matrix.shape)}"
        )
    not_finite = int((~torch.isfinite(matrix)).sum())
    if not_finite:
        raise ValueError(
            f"{name} must be finite, got {not_finite} NaN or infinite values out of "
            f"{matrix.numel()}"
        )
    return matrix.detach()


def from_numpy(value: Any) -> Any:
    """Convert a numpy array, in any byte order and with any strides; return others as they are."""
    numpy = sys.modules.get("numpy")  # not loaded: then nothing is an array of it
    if numpy is None or not isinstance(value, numpy.ndarray):
        return value
    # A copy: torch warns about read-only arrays.
    native = numpy.array(value, dtype=value.dtype.newbyteorder("="), order="C", copy=True)
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise TypeError(f"numpy arrays of {value.dtype} cannot be converted: {error}") from error
