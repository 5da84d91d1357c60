"""Scores of one text and the tokens of a few videos, which are read where they lie.

It is for search on a CPU, without gradients. Tokens are not normalised: products are divided by
norms, and candidates with norms that one precision cannot hold are scored once more, normalised.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from muse_adapter.layers.pairs import unit_tokens
from muse_adapter.ops import text_gated_scores
from muse_adapter.ops.checks import values_can_be_asked
from muse_adapter.ops.inputs import gradient_wanted
from muse_adapter.ops.rows import RowKind, Rows, held, leaves, row_kind

__all__ = ["RowKind", "Rows", "can_read_in_place", "candidate_scores", "held", "row_kind"]

_NARROW = torch.float16, torch.int8


def can_read_in_place(parameters: Iterable[Tensor], text: Tensor, *features: Rows | None) -> bool:
    """Whether the functions here serve: on a CPU, in eager mode, where no gradient is wanted."""
    tensors = itertools.chain(parameters, [text], *(leaves(rows) for rows in features))
    return values_can_be_asked(text) and not gradient_wanted(tensors)


def candidate_scores(
    text: Tensor,
    keys: Rows,
    values: Rows | None,
    mask: Tensor | None,
    *,
    weak_temperature: float,
    gate_temperature: float,
    weights: tuple[float, float, float],
    mix: Tensor | None = None,
    mean_query: Tensor | None = None,
) -> Tensor:
    """Score a text against the tokens of candidates, in the three ways of EERCF.

    They are the token similarity of the keys; the cosine of the text and the values that the keys
    gate; and the inner product of `mean_query` and the unit mean of the values at unit norm.

    Args:
        text: (D,).
        keys: (K, ..., D), or K tensors (..., D), any floating type or int8.
        values: Likewise, for the second and third score; None: without them.
        mask: (K, N) bool, for the N tokens of a candidate, or None.
        weak_temperature: Of the token similarity.
        gate_temperature: Of the gate.
        weights: Of the three; one of weight 0 may be NaN.
        mix: (N, N), for the token similarity, or None.
        mean_query: (D,), for the third; None: the text at unit norm.

    Returns:
        (K,) in float32 at least, the weighted sums.
    """
    score = functools.partial(
        text_gated_scores,
        text=text,
        mean_query=mean_query,
        mix=mix,
        weak_temperature=weak_temperature,
        gate_temperature=gate_temperature,
        weights=weights,
    )
    scores, norms = score(keys, values, mask=mask)
    for k in _unsafe(norms, (keys, values)):
        part = None if mask is None else mask[k, None]
        unit_keys = unit_tokens(keys[k][None].flatten(1, -2), part)
        unit_values = None
        if values is not None:
            unit_values = unit_tokens(values[k][None].flatten(1, -2), part)
        scores[k] = score(unit_keys, unit_values, mask=part)[0][0]
    return scores


def _unsafe(norms: Tensor, features: Iterable[Rows | None]) -> list[int]:
    """Find candidates some of whose tokens have squares that vanished or overflowed."""
    if all(tensor.dtype in _NARROW for rows in features for tensor in leaves(rows)[:1]):
        return []  # their squares do neither in float32
    limits = torch.finfo(norms.dtype)
    low, high = limits.tiny**0.5 / limits.eps, limits.max**0.5
    safe = (norms > low) & (norms < high)
    rows: list[int] = (~safe.all(1)).nonzero()[:, 0].tolist()
    return rows
