"""How time and memory grow with length, and where two heads cost the same."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Growth(NamedTuple):
    """cost ~ length ^ exponent.

    Attributes:
        exponent: the slope of a straight line through the logarithms, by least squares.
        error: its standard error.
        points: lengths that it was fitted to.
    """

    exponent: float
    error: float
    points: int


def fit(costs: Mapping[int, float]) -> Growth | None:
    """Fit the exponent to costs by length; None for fewer than three lengths with a cost."""
    points = [(math.log(n), math.log(cost)) for n, cost in costs.items() if cost > 0]
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Growth(slope, math.sqrt(rest / (len(points) - 2) / spread), len(points))


class Comparison(NamedTuple):
    """Where one head's cost meets another's, over the lengths at which both were measured.

    Attributes:
        shortest, longest: those lengths' range.
        cheaper_first: whether the first head is the cheaper one at the shortest length.
        crossings: lengths where that changes, between two measured ones (straight lines between
            the logarithms).
    """

    shortest: int
    longest: int
    cheaper_first: bool
    crossings: tuple[float, ...]

    def __str__(self) -> str:
        within = f"{self.shortest:,} to {self.longest:,} tokens"
        word = "cheaper" if self.cheaper_first else "dearer"
        if not self.crossings:
            return f"none within the measured range ({within}): {word} throughout"
        parts = [f"{word} up to {self.crossings[0]:,.0f} tokens"]
        for length in self.crossings[1:]:
            word = "dearer" if word == "cheaper" else "cheaper"
            parts.append(f"{word} up to {length:,.0f}")
        parts.append(f"{'dearer' if word == 'cheaper' else 'cheaper'} from there ({within})")
        return ", ".join(parts)


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """Compare costs by length; None where fewer than two lengths have both, or all are equal."""
    lengths = sorted(n for n in first.keys() & second.keys() if first[n] > 0 and second[n] > 0)
    # Logarithms of length and of the costs' ratio, which is above zero where the first is dearer.
    gaps = [(math.log(n), math.log(first[n] / second[n])) for n in lengths if first[n] != second[n]]
    if len(lengths) < 2 or not gaps:
        return None
    return Comparison(lengths[0], lengths[-1], gaps[0][1] < 0, _sign_changes(gaps))


def _sign_changes(gaps: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    found = []
    for (x, here), (next_x, there) in itertools.pairwise(gaps):
        if (here < 0) != (there < 0):
            found.append(math.exp(x + here / (here - there) * (next_x - x)))
    return tuple(found)
