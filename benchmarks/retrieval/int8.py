"""Patches in one byte a number: a quarter of float32, scored by a loop that numba compiles."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from muse_adapter import EERCF


def quantized(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Bring patches to unit norm and to bytes.

    Args:
        patches: (videos, T, P, D).

    Returns:
        int8 (videos, T * P, D), and the float32 factor (videos, T * P) of each patch.
    """
    numbers = torch.empty(len(patches), *patches[0].flatten(0, 1).shape, dtype=torch.int8)
    factors = torch.empty(numbers.shape[:2])
    for i, video in enumerate(patches):
        unit = torch.nn.functional.normalize(video.flatten(0, 1).float(), dim=-1)
        largest = unit.abs().amax(1)
        numbers[i] = (unit * (127 / largest)[:, None]).round().to(torch.int8)
        factors[i] = largest / 127
    return numbers, factors


def rerank(
    scorer: EERCF,
    text: Tensor,
    features: Mapping[str, Sequence[Tensor]],
    recall_text: Tensor | None = None,
) -> Tensor:
    """Compute `EERCF.rerank_candidates` with patches in bytes.

    Args:
        scorer: Without a weight for the gated patches.
        text: (D,).
        features: `frames`, `fused`, and `numbers` and `factors` of `quantized`, K of each.
        recall_text: (D,), as for `EERCF.rerank_candidates`.

    Returns:
        (K,).
    """
    text = torch.nn.functional.normalize(text, dim=0)
    similarities = torch.empty(len(features["factors"]), len(features["factors"][0]))
    product = _product()
    for numbers, factors, out in zip(
        features["numbers"], features["factors"], similarities, strict=True
    ):
        product(text.numpy(), numbers.numpy(), factors.numpy(), out.numpy())
    weights = (similarities / scorer.weak_temperature).softmax(1)
    patch_weak = (similarities * weights).sum(1)
    frames = scorer.rerank_candidates(
        text, features["frames"], features["fused"], recall_text=recall_text
    )
    return frames + scorer.rerank_weights[2] * patch_weak


@functools.cache
def _product() -> Callable[..., None]:
    """Compile the product of a vector and a matrix of bytes.

    Raises:
        ImportError: numba is not installed.
    """
    numba: Any = importlib.import_module("numba")

    def product(text: Any, numbers: Any, factors: Any, out: Any) -> None:
        for n in range(len(numbers)):
            row = numbers[n]
            total = text[0] * 0
            for d in range(len(text)):
                total += text[d] * row[d]
            out[n] = total * factors[n]

    compiled: Callable[..., None] = numba.njit(fastmath=True)(product)
    return compiled
