"""Scores of a text and the stored tokens of candidates, in one pass over them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.checks import check_tensor
from muse_adapter.ops.choice import choose
from muse_adapter.ops.inputs import state_dtype
from muse_adapter.ops.rows import HeldRows, RowKind, Rows, held, row_kind
from muse_adapter.ops.text_gate_inputs import TextGateInputs


def text_gated_scores(
    keys: Rows,
    values: Rows | None,
    text: Tensor,
    mean_query: Tensor | None = None,
    *,
    mask: Tensor | None = None,
    mix: Tensor | None = None,
    weak_temperature: float = 0.01,
    gate_temperature: float = 0.1,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Compare a text with the tokens of candidates, and with sums of tokens.

        sim[n]  = unit(text) . unit(key_n)
        weak    = sum over n of sim[n] * (softmax(sim / weak_temperature) @ mix)[n]
        gate    = softmax(sim / gate_temperature)
        gated   = unit(text) . unit(sum over n of gate[n] * unit(value_n))
        mean    = mean_query . unit(sum over n of unit(value_n))
        score   = weights[0] * weak + weights[1] * gated + weights[2] * mean

    Tokens are read where they lie and in their own type; all sums are in float32, or in float64 for
    a float64 text. Squares of very large and very small tokens overflow and vanish there: the norms
    that are returned say of which candidates the scores hold. A token of zeros has the cosine 0.

    Args:
        keys: (K, ..., D), or K tensors (..., D) of one shape, type and device, floating point or
            int8; K is at least 1.
        values: Likewise, with as many tokens; None: `weak` alone.
        text: (D,).
        mean_query: (D,); None: the text at unit norm.
        mask: (K, N) bool, for the N tokens of a candidate; masked ones may hold any values.
        mix: (N, N), or None.
        weak_temperature: 0 is the maximum, infinity the mean.
        gate_temperature: Positive.
        weights: Of the three terms; one of weight 0 may be NaN. Without values the first counts.
        backend: Name of a backend; None chooses.

    Returns:
        Scores (K,), 0 for a candidate without a valid token; and the smallest and largest norm of
        its tokens (K, 2), where masked ones count as 1.

    Raises:
        ValueError: Shapes or devices that do not fit, a temperature out of range, weights that are
            not three, an unknown backend.
        TypeError: Tensors of other types.
        RuntimeError: The backend asked for cannot run.
    """
    keys, values = held("keys", keys), None if values is None else held("values", values)
    kind = _check_rows("keys", keys)
    like, count, (*axes, width) = ("keys[0]", kind), len(keys), kind.shape
    tokens = math.prod(axes)
    if values is not None:
        other = _check_rows("values", values)
        (*axes, other_width), others = other.shape, len(values)
        if (others, math.prod(axes), other_width) != (count, tokens, width):
            raise ValueError(
                f"values must have the tokens of keys, {count} times {tokens} of width {width}, "
                f"got {others} of shape {tuple(other.shape)}"
            )
        _check_device("values", other, kind)
    check_tensor("text", text, (width,), like)
    check_tensor("mean_query", mean_query, (width,), like)
    check_tensor("mix", mix, (tokens, tokens), like)
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (count, tokens)):
        raise ValueError(
            f"mask must be bool of shape {(count, tokens)}, got {mask.dtype} {tuple(mask.shape)}"
        )
    if mask is not None:
        _check_device("mask", mask, kind)
    if not weak_temperature >= 0:
        raise ValueError(f"weak_temperature must be 0 or more, got {weak_temperature}")
    if not gate_temperature > 0:
        raise ValueError(f"gate_temperature must be positive, got {gate_temperature}")
    if len(weights) != 3:
        raise ValueError(f"weights must be three numbers, got {weights}")
    dtype = state_dtype(text)
    inputs = TextGateInputs(
        keys,
        values,
        text.to(dtype),
        None if mean_query is None else mean_query.to(dtype),
        mask,
        None if mix is None else mix.to(dtype),
        weak_temperature,
        gate_temperature,
        weights,
        tokens,
    )
    with without_autocast(kind.device.type):
        return choose(kind.device, backend, only_here=True).text_gated_scores(inputs)


def _check_rows(name: str, rows: Rows) -> Tensor | RowKind:
    """Refuse rows that are not alike, since kernels read by address; return what they are like."""
    if not len(rows):
        raise ValueError(f"{name} must be at least one, got none")
    kind = row_kind(rows)
    shape, dtype, device = kind.shape, kind.dtype, kind.device
    if not (dtype.is_floating_point or dtype == torch.int8):
        raise TypeError(f"{name} must be of a real floating type or int8, got {dtype}")
    if len(shape) < 2 or not math.prod(shape):
        raise ValueError(f"{name} must be tensors (..., D), no size 0, got shape {tuple(shape)}")
    if not isinstance(rows, (Tensor, HeldRows)):
        for index, row in enumerate(rows):
            if row.shape != shape or row.dtype != dtype or row.device != device:
                raise ValueError(
                    f"{name} must be of one shape, type and device, got {tuple(shape)} {dtype} "
                    f"{device} and {name}[{index}] {tuple(row.shape)} {row.dtype} {row.device}"
                )
    return kind


def _check_device(name: str, tensor: Tensor | RowKind, first: Tensor | RowKind) -> None:
    if tensor.device != first.device:
        raise ValueError(
            f"{name} must be on the device of keys[0], {first.device}, got {tensor.device}"
        )
