"""Weights of a candidate's tokens: cosines, softmax and norms, for the lanes of a register.

Arrays have room up to a multiple of WIDTH. Flags say what a token is: 1 for a valid one, 0 for a
masked one, -1 behind the tokens, where everything else may hold anything.
"""

from __future__ import annotations

import math
from typing import Any

from muse_adapter.ops.numba_cpu.elementary import exp2
from muse_adapter.ops.numba_cpu.simd import (
    WIDTH,
    inline,
    lane_sum,
    load,
    splat,
    store,
    where_above,
)

_BEHIND = -0.5  # flags of tokens are above this
_NO_WEIGHT = -200.0  # the logarithm to base 2 of a weight that is 0 in float32


@inline
def larger(x: Any, y: Any) -> Any:
    """Return the larger number in each lane, y where x is NaN."""
    return where_above(x - y, 0.0, x, y)


@inline
def highest(lanes: Any, room: Any) -> float:
    """Return the largest number of a vector without NaN."""
    store(room, 0, lanes)
    most = room[0]
    for lane in range(1, WIDTH):
        most = max(most, room[lane])
    return most


@inline
def norm_range(norms: Any, valid: Any, tokens: int, room: Any) -> Any:
    """Return the smallest and the largest norm, and whether a token is valid.

    NaN is infinite, and masked tokens count as 1.
    """
    one = splat(valid[0]) * 0.0 + 1.0
    infinite = one * math.inf
    most, most_negative, seen = one * 0.0, infinite * -1.0, one * 0.0
    for start in range(0, tokens, WIDTH):
        flags = load(valid, start)
        norm = where_above(flags, 0.0, load(norms, start), one)
        norm = where_above(norm, -1.0, norm, infinite)
        most = where_above(flags, _BEHIND, larger(norm, most), most)
        negative = larger(norm * -1.0, most_negative)
        most_negative = where_above(flags, _BEHIND, negative, most_negative)
        seen = larger(flags, seen)
    return -highest(most_negative, room), highest(most, room), highest(seen, room) > 0.0


@inline
def cosines(products: Any, norms: Any, valid: Any, tokens: int) -> None:
    """Divide products by norms; 0 for a token of zeros, a masked one, and behind the tokens."""
    zero = splat(valid[0]) * 0.0
    for start in range(0, tokens, WIDTH):
        norm = load(norms, start)
        divisor = norm + where_above(norm, 0.0, zero, zero + 1.0)
        cosine = load(products, start) / divisor
        store(products, start, where_above(load(valid, start), 0.0, cosine, zero))


@inline
def softmax(sims: Any, valid: Any, tokens: int, scale: float, weights: Any) -> None:
    """Write 2**(scale * sim), divided by their sum; 0 for masked tokens, and behind them."""
    zero = splat(sims[0]) * 0.0
    lowest = (zero + 1.0) * -math.inf
    best = lowest
    for start in range(0, tokens, WIDTH):
        best = larger(where_above(load(valid, start), 0.0, load(sims, start), lowest), best)
    top = highest(best, weights)
    total = zero
    for start in range(0, tokens, WIDTH):
        below = load(sims, start) - top
        # Of a temperature of 0, whose scale is infinite, too.
        exponent = where_above(below * -1.0, 0.0, below * scale, below)
        exponent = where_above(load(valid, start), 0.0, exponent, zero + _NO_WEIGHT)
        part = exp2(exponent)
        store(weights, start, part)
        total = total + part
    divisor = lane_sum(total)
    if divisor != 0.0:
        for start in range(0, tokens, WIDTH):
            store(weights, start, load(weights, start) / divisor)


@inline
def multiply_inverse_norms(norms: Any, valid: Any, tokens: int, weights: Any) -> None:
    """Invert norms, that of zeros to 0 and an infinite one to NaN, and multiply weights with them.

    Both become 0 for masked tokens, and behind the tokens.
    """
    zero = splat(valid[0]) * 0.0
    for start in range(0, tokens, WIDTH):
        norm = load(norms, start)
        factor = where_above(norm, 0.0, 1.0 / norm, norm) + (norm - norm)
        factor = where_above(load(valid, start), 0.0, factor, zero)
        store(norms, start, factor)
        store(weights, start, load(weights, start) * factor)


@inline
def mixed(weights: Any, mix: Any, tokens: int, out: Any) -> None:
    """Multiply weights with a matrix; 0 behind the tokens."""
    for n in range(tokens):
        total = weights[0] * 0.0
        for m in range(tokens):
            total += weights[m] * mix[m * tokens + n]
        out[n] = total
    for n in range(tokens, -(-tokens // WIDTH) * WIDTH):
        out[n] = 0.0


@inline
def inner_product(x: Any, y: Any, count: int) -> float:
    """Multiply vectors, which are 0 behind `count` numbers, up to a multiple of WIDTH."""
    total = splat(x[0]) * 0.0
    for n in range(0, count, WIDTH):
        total = total + load(x, n) * load(y, n)
    return lane_sum(total)
