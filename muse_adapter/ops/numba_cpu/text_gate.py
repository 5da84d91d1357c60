"""Scores of a text and stored tokens, in half precision or int8, each read from memory once.

Torch converts tokens to float32 in memory first and reads them twice more.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muse_adapter.ops.numba_cpu.elementary import exp2
from muse_adapter.ops.numba_cpu.function import addresses
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    advance,
    inline,
    lane_sum,
    load,
    pointer,
    splat,
    store,
)
from muse_adapter.ops.numba_cpu.stored import load_stored, prefetch
from muse_adapter.ops.rows import row_addresses
from muse_adapter.ops.text_gate_inputs import TextGateInputs

MIN_NUMBERS = 2**20  # below that a second thread is not worth its start
# Tokens between what is computed and what is asked for. It buys a sixth of the time of patches in
# int8 that are not in the cache, and nothing in half precision, where memory is the limit.
_AHEAD = 4
_SCRATCH = 3  # arrays of N numbers that a thread works in
_NO_WEIGHT = -200.0  # the logarithm to base 2 of a weight that is 0 in float32
_CANCELLED = 2.0**-46  # squared length of a sum of unit tokens that is nothing but rounding


_unpack = unpacker(4, 10)


@inline
def multiply(
    row: Any,
    following: Any,
    tokens: int,
    width: int,
    vector: Any,
    unit: Any,
    products: Any,
    norms: Any,
) -> None:
    """Multiply each token of a row with a vector, and compute its norm.

    Rows lie anywhere, so that the processor cannot guess what is read after this one: `following`.
    """
    for token in range(0, tokens, 2):  # two at once: their sums do not wait for each other
        other = min(token + 1, tokens - 1)
        product, square = splat(unit) * 0.0, splat(unit) * 0.0
        product2, square2 = product, square
        later = token + _AHEAD
        ahead = advance(row, later * width)
        if later >= tokens:
            ahead = advance(following, (later - tokens) * width)
        for d in range(0, width, WIDTH):
            prefetch(ahead, d)
            prefetch(ahead, width + d)
            v = load(vector, d)
            x = load_stored(row, token * width + d, unit)
            y = load_stored(row, other * width + d, unit)
            product, square = product + x * v, square + x * x
            product2, square2 = product2 + y * v, square2 + y * y
        products[token], norms[token] = lane_sum(product), math.sqrt(lane_sum(square))
        products[other], norms[other] = lane_sum(product2), math.sqrt(lane_sum(square2))


@inline
def softmax(sims: Any, valid: Any, tokens: int, scale: float, weights: Any) -> None:
    """Write 2**(scale * sim), divided by their sum; 0 where `valid` is 0, and behind the tokens."""
    highest = -math.inf
    for n in range(tokens):
        if valid[n] and sims[n] > highest:
            highest = sims[n]
    total = splat(sims[0]) * 0.0
    for start in range(0, tokens, WIDTH):
        for n in range(start, start + WIDTH):
            weights[n] = _NO_WEIGHT
            if n < tokens and valid[n]:
                below = sims[n] - highest  # of a temperature of 0, whose scale is infinite, too
                weights[n] = below * scale if below != 0.0 else 0.0
        part = exp2(load(weights, start))
        store(weights, start, part)
        total = total + part
    divisor = lane_sum(total)
    if divisor != 0.0:
        for n in range(tokens):
            weights[n] /= divisor


@inline
def pool(
    row: Any, tokens: int, width: int, weights: Any, factors: Any, queries: Any, unit: Any
) -> Any:
    """Return the cosines of two queries with two sums of tokens, by weights and by factors."""
    zero = splat(unit) * 0.0
    product, square, product2, square2 = zero, zero, zero, zero
    for d in range(0, width, WIDTH):
        gated, mean = zero, zero
        for token in range(tokens):
            if factors[token] != 0.0:  # others may hold anything
                x = load_stored(row, token * width + d, unit)
                gated = gated + weights[token] * x
                mean = mean + factors[token] * x
        product, square = product + gated * load(queries[0], d), square + gated * gated
        product2, square2 = product2 + mean * load(queries[1], d), square2 + mean * mean
    return (
        lane_sum(product) / math.sqrt(max(lane_sum(square), _CANCELLED)),
        lane_sum(product2) / math.sqrt(max(lane_sum(square2), _CANCELLED)),
    )


@inline
def norm_range(norm: float, least: float, most: float) -> Any:
    """Take a norm into a range; NaN makes it infinite."""
    if not norm < math.inf:
        norm = math.inf
    return min(norm, least), max(norm, most)


@inline
def score_rows(memory: Any, stored: Any) -> None:
    """Score the candidates; a job is one of them.

    Arguments in the memory:
        sizes: candidates K, tokens N of each, D, N rounded up to a multiple of WIDTH.
        places: addresses of the keys' and values' addresses (K,), of the text and the mean query
            (D,), of the mask (K, N) and the mix (N, N), of what the exponents of both softmaxes are
            multiplied with (2,), of room for each thread (3, N rounded up), and of the results:
            scores (K, 3) or (K, 1), norms (K, 2). Values and mix may be missing: 0.
    """
    unit, counters, threads, sizes, places = _unpack(memory)
    thread = next_number(counters + 8)
    if thread >= threads:
        return
    count, tokens, width, room = sizes
    keys, values = pointer(places[0], 1), pointer(places[1], 1)
    text, mean_query = pointer(places[2], unit), pointer(places[3], unit)
    mask, mix = pointer(places[4], np.int8(0)), pointer(places[5], unit)
    scales = pointer(places[6], unit)
    sims = advance(pointer(places[7], unit), thread * _SCRATCH * room)
    weights, norms = advance(sims, room), advance(sims, 2 * room)
    scores, ranges = pointer(places[8], unit), pointer(places[9], unit)
    columns = 3 if places[1] else 1
    while True:
        job = next_number(counters)
        if job >= count:
            return
        valid = advance(mask, job * tokens)
        row, next_row = pointer(keys[job], stored), pointer(keys[min(job + 1, count - 1)], stored)
        following = pointer(values[job], stored) if places[1] else next_row
        multiply(row, following, tokens, width, text, unit, sims, norms)
        least, most = math.inf, 0.0
        for n in range(tokens):
            least, most = norm_range(norms[n] if valid[n] else 1.0, least, most)
            sims[n] = sims[n] / norms[n] if valid[n] and norms[n] != 0.0 else 0.0
        softmax(sims, valid, tokens, scales[0], weights)
        total = 0.0
        for n in range(tokens):
            weight = weights[n]
            if places[5]:
                weight *= 0.0
                for m in range(tokens):
                    weight += weights[m] * mix[m * tokens + n]
            total += sims[n] * weight
        scores[job * columns] = total
        if places[1]:
            row = pointer(values[job], stored)
            multiply(row, next_row, tokens, width, text, unit, weights, norms)
            softmax(sims, valid, tokens, scales[1], weights)
            for n in range(tokens):
                least, most = norm_range(norms[n] if valid[n] else 1.0, least, most)
                norms[n] = 1.0 / norms[n] if valid[n] and norms[n] != 0.0 else 0.0
                weights[n] *= norms[n]
            gated, mean = pool(row, tokens, width, weights, norms, (text, mean_query), unit)
            scores[3 * job + 1], scores[3 * job + 2] = gated, mean
        ranges[2 * job], ranges[2 * job + 1] = least, most


@Kernel
def score_halves(memory: Any) -> None:
    """Score rows in half precision, see `score_rows`."""
    score_rows(memory, np.int16(0))


@Kernel
def score_bytes(memory: Any) -> None:
    """Score rows in int8, see `score_rows`."""
    score_rows(memory, np.int8(0))


def text_gated_scores(inputs: TextGateInputs) -> tuple[Tensor, Tensor]:
    """See `muse_adapter.ops.text_gated_scores`.

    Args:
        inputs: Rows are contiguous, all float16 or all int8, D is a multiple of WIDTH; the others
            are float32.

    Returns:
        Scores (K, 3) or (K, 1), and the range of the norms (K, 2).
    """
    keys, values, text, mean_query, mask, mix, weak, gate, first, _ = inputs
    count, width = len(keys), len(text)
    tokens = first.numel() // width
    room = -(-tokens // WIDTH) * WIDTH
    threads = torch.get_num_threads() if count * tokens * width >= MIN_NUMBERS else 1
    scales = [LOG2E / temperature if temperature else math.inf for temperature in (weak, gate)]
    scores, norms = text.new_empty(count, 1 if values is None else 3), text.new_empty(count, 2)
    places = row_addresses(keys), array("q") if values is None else row_addresses(values)
    held = (
        text.contiguous(),
        mean_query.contiguous(),
        text.new_ones(count, tokens, dtype=torch.bool) if mask is None else mask.contiguous(),
        None if mix is None else mix.contiguous(),
        text.new_tensor(scales),
        text.new_empty(threads, _SCRATCH, room),
        scores,
        norms,
    )
    kernel = score_halves if first.dtype == torch.float16 else score_bytes
    kernel.run(
        torch.float32,
        threads,
        (count, tokens, width, room),
        tuple(place.buffer_info()[0] if place else 0 for place in places),
        addresses(*held),
    )
    return scores, norms
