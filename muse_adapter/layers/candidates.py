"""Scores of one text and the tokens of a few videos, which are read where they lie.

It is for search on a CPU, without gradients. Tokens are not normalised: products are divided by
norms, and whether norms may be taken in one precision is asked of their values.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import torch
from torch import Tensor

from muse_adapter.layers.pairs import unit_tokens
from muse_adapter.layers.token_weights import masked, weighted_similarity
from muse_adapter.ops import pooled_products, token_products
from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import values_can_be_asked
from muse_adapter.ops.inputs import gradient_wanted
from muse_adapter.ops.rows import Rows, source


def can_read_in_place(parameters: Iterable[Tensor], *features: Rows | None) -> bool:
    """Whether the functions here serve: on a CPU, in eager mode, where no gradient is wanted."""
    given = [rows for rows in features if rows is not None]
    tensors = (rows if (found := source(rows)) is None else found[:1] for rows in given)
    leaves = itertools.chain(parameters, *tensors)
    return values_can_be_asked(given[0][0]) and not gradient_wanted(leaves)


def candidate_scores(
    text: Tensor,
    keys: Rows,
    values: Rows | None,
    mask: Tensor | None,
    *,
    weak_temperature: float,
    gate_temperature: float,
    mix: Tensor | None = None,
    mean_query: Tensor | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Score a text against the tokens of candidates, in the three ways of EERCF.

    Args:
        text: (D,), of unit norm.
        keys: (K, ..., D), or K tensors (..., D), any floating type.
        values: Likewise, for the second and third score; None: without them.
        mask: (K, N) bool, for the N tokens of a candidate, or None.
        weak_temperature: Of the token similarity.
        gate_temperature: Of the gate.
        mix: (N, N), for the token similarity, or None.
        mean_query: (D,), for the third score; None: without it.

    Returns:
        (K,) in float32 at least: the token similarity of the keys; the cosine of the text and the
        values that the keys gate; the inner product of `mean_query` and the unit mean of the values
        at unit norm.
    """
    with without_autocast(text.device.type):
        sims = token_cosines(keys, text, mask)
        weak = _weighted_similarity(sims, mask, weak_temperature, mix)
        if values is None:
            return weak, None, None
        weights, queries = [_softmax(sims / gate_temperature, mask)], [text]
        if mean_query is not None:
            weights.append(torch.full_like(sims, 1 / sims.shape[1]))
            queries.append(mean_query)
        pooled = pooled_cosines(values, torch.stack(weights, 1), torch.stack(queries), mask)
    return weak, pooled[:, 0], None if mean_query is None else pooled[:, 1]


def _weighted_similarity(
    sims: Tensor, mask: Tensor | None, temperature: float, mix: Tensor | None
) -> Tensor:
    """Compute `weighted_similarity` of one text, from (K, N) to (K,)."""
    if temperature in (0, math.inf):
        return weighted_similarity(sims[..., None], mask, temperature, mix)[:, 0]
    weights = _softmax(sims / temperature, mask)
    if mix is not None:
        weights = weights @ mix.to(sims.dtype)
    return (sims * weights).sum(1)


def _softmax(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Compute `masked_softmax` (K, N), over the last axis, where torch has the faster kernel."""
    if mask is not None:
        logits = masked(logits[..., None], mask)[..., 0]
    return logits.softmax(1)


def token_cosines(rows: Rows, text: Tensor, mask: Tensor | None) -> Tensor:
    """Compute cosines of a text and tokens, each of which is read once.

    Args:
        rows: (K, ..., D), or K tensors (..., D), any floating type, any values where masked.
        text: (D,), of unit norm.
        mask: (K, N) bool, or None.

    Returns:
        (K, N), for the N tokens of each row, in float32 at least; 0 where masked, and for zeros.
    """
    products, norms = token_products(rows, text)
    cosines = products / norms
    if mask is not None:
        cosines = cosines.masked_fill(~mask, 0)
    for k in _unsafe_rows(norms, mask):
        part = None if mask is None else mask[k, None]
        tokens = unit_tokens(rows[k][None].flatten(1, -2), part)[0]
        cosines[k] = tokens @ text.to(tokens.dtype)
    return cosines


def pooled_cosines(rows: Rows, weights: Tensor, queries: Tensor, mask: Tensor | None) -> Tensor:
    """Compare weighted sums of tokens at unit norm with a query for each sum.

    Args:
        rows: As in `token_cosines`.
        weights: (K, W, N).
        queries: (W, D).
        mask: (K, N) bool, or None.

    Returns:
        (K, W), inner products of query w and sum w at unit norm, in float32 at least; 0 where a sum
        vanishes.
    """
    if mask is not None:
        weights = weights.masked_fill(~mask[:, None], 0)
    norms, products, squares = pooled_products(rows, weights, queries)
    for k in _unsafe_rows(norms, mask):
        part = None if mask is None else mask[k, None]
        tokens = unit_tokens(rows[k][None].flatten(1, -2), part)[0]
        sums = weights[k].to(tokens.dtype) @ tokens
        products[k], squares[k] = (sums * queries).sum(1), sums.square().sum(1)
    # Unit vectors that cancel leave no direction, and a video without a token has none.
    smallest = torch.finfo(squares.dtype).eps ** 2
    return products * squares.clamp(min=smallest).rsqrt()


def _unsafe_rows(norms: Tensor, mask: Tensor | None) -> list[int]:
    """Find rows where squares vanished or overflowed, or whose masked tokens are not finite."""
    limits = torch.finfo(norms.dtype)
    low, high = limits.tiny**0.5 / limits.eps, limits.max**0.5
    if mask is not None:
        norms = norms.masked_fill(~mask & (norms < high), 1)
    smallest, largest = (float(norm) for norm in norms.aminmax())
    if low < smallest and largest < high:  # not so for NaN
        return []
    safe = (norms > low) & (norms < high)
    rows: list[int] = (~safe.all(1)).nonzero()[:, 0].tolist()
    return rows
