"""Vectors in kernels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from muse_adapter.ops.numba_cpu.simd import WIDTH, inline, lane_sum, splat
from muse_adapter.ops.numba_cpu.stored import load_stored


@inline
def unit_vector(vector: Any, width: int, out: Any) -> None:
    """Normalise a vector of float32, whose squares float64 can hold; zeros stay zeros."""
    total = splat(np.float64(0.0))
    for d in range(0, width, WIDTH):
        x = load_stored(vector, d, np.float64(0.0))
        total = total + x * x
    norm = math.sqrt(lane_sum(total))
    for d in range(width):
        out[d] = vector[d] / norm if norm != 0.0 else 0.0
