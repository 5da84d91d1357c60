"""Scores of a text and stored tokens, in half precision or int8, each read from memory once.

Torch converts tokens to float32 in memory first and reads them twice more. The kernel is bound by
reading: patches in half precision take little longer than a plain read of them.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import numpy as np
import torch
from torch import Tensor

from muse_adapter.ops.numba_cpu.function import addresses
from muse_adapter.ops.numba_cpu.kernel import Kernel, next_number, unpacker
from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    advance,
    inline,
    lane_sum,
    lane_sums,
    load,
    pointer,
    splat,
    square_root,
    store,
)
from muse_adapter.ops.numba_cpu.stored import load_stored, prefetch
from muse_adapter.ops.numba_cpu.token_weights import (
    cosines,
    inner_product,
    mixed,
    multiply_inverse_norms,
    norm_range,
    softmax,
)
from muse_adapter.ops.numba_cpu.vectors import unit_vector
from muse_adapter.ops.rows import row_kind, row_places
from muse_adapter.ops.text_gate_inputs import TextGateInputs

MIN_NUMBERS = 2**20  # below that a second thread is not worth its start
# Tokens between what is computed and what is asked for. Rows lie in pages of memory, and what the
# processor asks for by itself ends with the page that it reads: asking early halves the time of
# patches, in half precision and in int8.
_AHEAD = 8
_CANCELLED = 2.0**-46  # squared length of a sum of unit tokens that is nothing but rounding


_unpack = unpacker(6, 3, 3, 8)


@inline
def multiply(
    row: Any,
    following: Any,
    tokens: int,
    width: int,
    vector: Any,
    unit: Any,
    sums: Any,
    products: Any,
    norms: Any,
) -> None:
    """Multiply each token of a row with a vector, and compute its norm.

    Rows lie anywhere, so that the processor cannot guess what is read after this one: `following`.
    Results behind the tokens may be anything.
    """
    zero = splat(unit) * 0.0
    squares = advance(sums, WIDTH * WIDTH)
    for start in range(0, tokens, WIDTH):
        for token in range(start, min(start + WIDTH, tokens), 2):
            # Two at once: their sums do not wait for each other.
            other = min(token + 1, tokens - 1)
            product, square, product2, square2 = zero, zero, zero, zero
            later = token + _AHEAD
            ahead = advance(row, later * width)
            if later >= tokens:
                ahead = advance(following, (later - tokens) * width)
            for d in range(0, width, WIDTH):
                prefetch(ahead, 2 * d)  # a line of halves, once: each request takes time
                v = load(vector, d)
                x = load_stored(row, token * width + d, unit)
                y = load_stored(row, other * width + d, unit)
                product, square = product + x * v, square + x * x
                product2, square2 = product2 + y * v, square2 + y * y
            at = (token - start) * WIDTH
            store(sums, at, product)
            store(sums, at + WIDTH, product2)
            store(squares, at, square)
            store(squares, at + WIDTH, square2)
        store(products, start, lane_sums(sums, 0))
        store(norms, start, square_root(lane_sums(squares, 0)))


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
def row_of(places: Any, job: Any, stored: Any) -> Any:
    """Return a pointer to a row, from what `row_places` says of all."""
    start, step, positions = places
    return pointer(start + step * pointer(positions, 1)[job], stored)


@inline
def weighted(weight: float, score: float) -> float:
    """Return a score times a weight, which may be 0 for NaN."""
    return weight * score if weight != 0.0 else 0.0


@inline
def score_rows(memory: Any, stored: Any) -> None:
    """Score the candidates; a job is one of them.

    Arguments in the memory:
        sizes: candidates K, tokens N of each, D, N rounded up to a multiple of WIDTH, from the
            flags of a candidate to the next, and how many numbers of room a thread has.
        keys, values: what `row_places` says, with the address of the positions (K,); or 0, 0, 0.
        places: addresses of the text and the mean query (D,), of the flags, which `token_weights`
            explains, and the mix (N, N), of five numbers, of the threads' room, and of the results:
            scores (K,), norms (K, 2). Mean query and mix may be missing: 0. The numbers are what
            the exponents of both softmaxes are multiplied with, and the weights of the three terms.
    """
    unit, counters, threads, sizes, keys, values, places = _unpack(memory)
    thread = next_number(counters + 8)
    if thread >= threads:
        return
    count, tokens, width, room, flags_step, scratch = sizes
    flags, mix = pointer(places[2], unit), pointer(places[3], unit)
    numbers = pointer(places[4], unit)
    sims = advance(pointer(places[5], unit), thread * scratch)
    weights, norms, sums, text = (
        advance(sims, room),
        advance(sims, 2 * room),
        advance(sims, 3 * room),
        advance(sims, 3 * room + 2 * WIDTH * WIDTH),
    )
    unit_vector(pointer(places[0], unit), width, text)
    mean_query = pointer(places[1], unit) if places[1] else text
    scores, ranges = pointer(places[6], unit), pointer(places[7], unit)
    with_values = values[2] != 0
    while True:
        job = next_number(counters)
        if job >= count:
            return
        valid = advance(flags, job * flags_step)
        row, next_row = row_of(keys, job, stored), row_of(keys, min(job + 1, count - 1), stored)
        following = row_of(values, job, stored) if with_values else next_row
        multiply(row, following, tokens, width, text, unit, sums, sims, norms)
        least, most, seen = norm_range(norms, valid, tokens, weights)
        cosines(sims, norms, valid, tokens)
        softmax(sims, valid, tokens, numbers[0], weights)
        if places[3]:
            mixed(weights, mix, tokens, norms)
        score = weighted(numbers[2], inner_product(sims, norms if places[3] else weights, tokens))
        if with_values:
            row = row_of(values, job, stored)
            multiply(row, next_row, tokens, width, text, unit, sums, weights, norms)
            least2, most2, _ = norm_range(norms, valid, tokens, weights)
            least, most = min(least, least2), max(most, most2)
            softmax(sims, valid, tokens, numbers[1], weights)
            multiply_inverse_norms(norms, valid, tokens, weights)
            gated, mean = pool(row, tokens, width, weights, norms, (text, mean_query), unit)
            score += weighted(numbers[3], gated) + weighted(numbers[4], mean)
        scores[job] = score if seen else 0.0  # NaN if the text or the mix is
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
        Scores (K,), and the range of the norms (K, 2).
    """
    keys, values, text, mean_query, mask, mix, weak, gate, weights, tokens = inputs
    count, width = len(keys), len(text)
    room = -(-tokens // WIDTH) * WIDTH
    threads = torch.get_num_threads() if count * tokens * width >= MIN_NUMBERS else 1
    scales = [LOG2E / temperature if temperature else math.inf for temperature in (weak, gate)]
    scores, norms = text.new_empty(count), text.new_empty(count, 2)
    places = row_places(keys), (0, 0, array("q")) if values is None else row_places(values)
    valid = array("f", [1.0] * tokens + [-1.0] * (room - tokens))  # flags of any, without a mask
    numbers = array("f", [*scales, *weights])
    text = text.contiguous()
    mean_query = None if mean_query is None else mean_query.contiguous()
    flags = None
    if mask is not None:
        flags = text.new_full((count, room), -1.0)
        flags[:, :tokens] = mask
    mix = None if mix is None else mix.contiguous()
    scratch = text.new_empty(threads, 3 * room + 2 * WIDTH * WIDTH + width)
    kernel = score_halves if row_kind(keys).dtype == torch.float16 else score_bytes
    kernel.run(
        torch.float32,
        threads,
        (count, tokens, width, room, 0 if flags is None else room, scratch.shape[1]),
        *((start, step, _address(positions)) for start, step, positions in places),
        (
            *addresses(text, mean_query),
            _address(valid) if flags is None else flags.data_ptr(),
            *addresses(mix),
            _address(numbers),
            *addresses(scratch, scores, norms),
        ),
    )
    return scores, norms


def _address(numbers: array[Any]) -> int:
    """Return where numbers of Python begin in memory, 0 for none."""
    return numbers.buffer_info()[0] if numbers else 0
