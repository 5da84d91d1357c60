"""What kernels share: functions of single numbers, and where a program's numbers lie."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# Names that a kernel may read must be constants.
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def softplus(value: Any) -> Any:
    """log(1 + exp(value)), exact to rounding: Triton has no log1p of its own."""
    small = tl.exp(-tl.abs(value))
    total = 1.0 + small
    # log(1 + u) = log(w) u / (w - 1), where w is 1 + u as it was rounded (Kahan).
    rounded = tl.where(total == 1.0, 1.0, total - 1.0)
    return tl.maximum(value, 0.0) + tl.where(
        total == 1.0, small, tl.log(total) * (small / rounded)
    )


@triton.jit
def sigmoid(value: Any) -> Any:
    """1 / (1 + exp(-value)), also where exp(-value) is infinite."""
    small = tl.exp(-tl.abs(value))
    return tl.where(value >= 0.0, 1.0, small) / (1.0 + small)


@triton.jit
def either(second: Any, a: Any, b: Any) -> Any:
    """`a` in the first direction, `b` in the second."""
    return tl.where(second, b, a)


@triton.jit
def span(
    lengths: Any, L0: Any, L1: Any, side: Any, batch: Any, backwards: Any, MASKED: tl.constexpr
) -> Any:
    """Where a video's steps lie: L, how many are valid, position of step 0, positions a step."""
    direction = side // batch
    length = either(direction == 1, L0, L1)
    valid = length
    if MASKED:
        valid = tl.minimum(tl.load(lengths + side % batch), length)
    reverse = (backwards >> direction) & 1
    return length, valid, reverse * (valid - 1), 1 - 2 * reverse


@triton.jit
def tiles(E: Any, S: Any, STATES: tl.constexpr, BLOCK: tl.constexpr) -> Any:
    """A program's channels and states: numbers, masks, offsets and mask of the (S, E) tile."""
    e = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, STATES)
    in_tile = (s < S)[:, None] & (e < E)[None, :]
    return e, s, e < E, s < S, s[:, None] * E + e[None, :], in_tile


@triton.jit
def gain_rows(
    gain: Any, video: Any, length: Any, time: Any, channels: Any, S: Any,
    CONSTANT: tl.constexpr, BLOCK: tl.constexpr,
) -> Any:  # fmt: skip
    """Address of B or C of the program's video and group at position 0; (S, E) as it is."""
    if CONSTANT:
        return gain
    return gain + video * length * time + tl.program_id(0) * BLOCK // channels * S
