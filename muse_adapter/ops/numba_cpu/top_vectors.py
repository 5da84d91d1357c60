"""The largest of many inner products: scores and vectors are read in place, by a query a thread.

A heap keeps the k best; torch sorts more than is wanted and copies what it scores again.
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
from muse_adapter.ops.numba_cpu.simd import WIDTH, advance, inline, lane_sum, pointer, splat
from muse_adapter.ops.numba_cpu.stored import load_stored
from muse_adapter.ops.top_vectors_inputs import NotFiniteError, TopProductsInputs

_ROUNDING = 2.0**-22  # more than that of a sum of float32
MIN_SCORES = 2**18  # below that a second thread is not worth its start

_unpack = unpacker(7, 7)


@inline
def comes_after(score: Any, place: Any, other_score: Any, other_place: Any) -> Any:
    """Whether the first of two stands behind the second: a lower score, or the same later."""
    return score < other_score or (score == other_score and place > other_place)


@inline
def replace_last(scores: Any, places: Any, size: Any, score: Any, place: Any) -> None:
    """Replace the root of a heap, which comes after all others in it."""
    at = 0
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        other = child + 1
        if other < size and comes_after(scores[other], places[other], scores[child], places[child]):
            child = other
        if not comes_after(scores[child], places[child], score, place):
            break
        scores[at], places[at] = scores[child], places[child]
        at = child
    scores[at], places[at] = score, place


@inline
def clear(scores: Any, places: Any, size: Any, last: Any) -> None:
    """Fill a heap with what comes after everything."""
    for i in range(size):
        scores[i], places[i] = -math.inf, last


@inline
def choose_rows(memory: Any, stored: Any) -> None:
    """Choose the best vectors; a job is a query.

    Arguments in the memory:
        sizes: vectors N, D, queries A, k, numbers from a vector to the next, from the scores of a
            query to the next, and from an error to the next.
        places: addresses of the vectors (N, D), queries (A, D), scores (A, N), of the
            results: inner products (A, k) and positions (A, k), of the errors (N,), and of a number
            that becomes 1 where something is not finite.
    """
    unit, counters, threads, sizes, places = _unpack(memory)
    if next_number(counters + 8) >= threads:
        return
    count, width, queries, k, step, score_step, error_step = sizes
    wide = np.float64(1.0)
    vectors, errors = pointer(places[0], stored), pointer(places[5], unit)
    wrong = pointer(places[6], 1)
    while True:
        job = next_number(counters)
        if job >= queries:
            return
        query = advance(pointer(places[1], unit), job * width)
        scores = advance(pointer(places[2], unit), job * score_step)
        best = advance(pointer(places[3], unit), job * k)
        found = advance(pointer(places[4], 1), job * k)
        clear(best, found, k, count)
        for n in range(count):
            least = scores[n] - errors[n * error_step]
            if not least <= best[0]:
                if not least < math.inf:
                    wrong[0] = 1
                    break
                replace_last(best, found, k, least, n)
        if best[0] == -math.inf:
            wrong[0] = 1
        if wrong[0]:
            return
        lowest = best[0] - abs(best[0]) * _ROUNDING
        clear(best, found, k, count)
        for n in range(count):
            most = scores[n] + errors[n * error_step]
            if most + abs(most) * _ROUNDING >= lowest:
                vector, total = advance(vectors, n * step), splat(wide) * 0.0
                for d in range(0, width, WIDTH):
                    total = total + load_stored(vector, d, wide) * load_stored(query, d, wide)
                score = np.float32(lane_sum(total))
                if not abs(score) < math.inf:
                    wrong[0] = 1
                    return
                if score > best[0]:
                    replace_last(best, found, k, score, n)
        for last in range(k - 1, 0, -1):  # the best come to stand first
            score, place = best[0], found[0]
            replace_last(best, found, last, best[last], found[last])
            best[last], found[last] = score, place


@Kernel
def choose_halves(memory: Any) -> None:
    """Choose among vectors in half precision, see `choose_rows`."""
    choose_rows(memory, np.int16(0))


@Kernel
def choose_singles(memory: Any) -> None:
    """Choose among vectors in float32, see `choose_rows`."""
    choose_rows(memory, np.float32(0.0))


def top_products(inputs: TopProductsInputs) -> tuple[Tensor, Tensor]:
    """See `muse_adapter.ops.top_products`.

    Args:
        inputs: Scores are float32, vectors float32 or float16, D is a multiple of WIDTH, and the
            entries of a vector, and the scores of a query, follow each other in memory.
    """
    vectors, queries, scores, error, k = inputs
    (number, count), width = scores.shape, vectors.shape[1]
    threads = min(number, torch.get_num_threads()) if scores.numel() >= MIN_SCORES else 1
    best, found = scores.new_empty(number, k), queries.new_empty(number, k, dtype=torch.long)
    queries, wrong = queries.contiguous(), array("q", [0])
    kernel = choose_halves if vectors.dtype == torch.float16 else choose_singles
    kernel.run(
        torch.float32,
        threads,
        (count, width, number, k, vectors.stride(0), scores.stride(0), error.stride(0)),
        (*addresses(vectors, queries, scores, best, found, error), wrong.buffer_info()[0]),
    )
    if wrong[0]:
        raise NotFiniteError
    return best, found
