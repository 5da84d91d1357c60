"""Exponents, crossing lengths and plots of the curves of `python -m benchmarks`."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from benchmarks.heads.curves import compare, draw, fit


def test_exponents_and_their_errors() -> None:
    exact = fit({n: 3.0 * n**1.5 for n in (10, 20, 50, 80)})
    assert exact is not None and exact.points == 4
    assert exact.exponent == pytest.approx(1.5) and exact.error == pytest.approx(0, abs=1e-6)
    # Through (0, 0), (1, 1), (2, 3) in logarithms: slope 1.5, residuals 1/6, -1/3, 1/6.
    noisy = fit({1: 1.0, 3: math.exp(math.log(3)), 9: math.exp(3 * math.log(3))})
    assert noisy is not None and noisy.exponent == pytest.approx(1.5)
    assert noisy.error == pytest.approx(math.sqrt(1 / 6 / 2))
    assert fit({1: 1.0, 2: 2.0}) is None and fit({1: 1.0, 2: 2.0, 3: 0.0}) is None


LINEAR = {10: 10.0, 100: 100.0, 1000: 1000.0}


@pytest.mark.parametrize(
    ("other", "crossings", "says"),
    [
        ({10: 20, 100: 200, 1000: 2000}, (), "(10 to 1,000 tokens): cheaper throughout"),
        ({10: 5, 100: 50, 1000: 500}, (), "none within the measured range"),
        # 10 n above 31.6 tokens: as much at 10^0.5 below as it is at 10^0.5 above.
        ({10: 1, 100: 1000, 1000: 1e5}, (10**1.5,), "dearer up to 32 tokens, cheaper from there"),
        ({10: 20, 1000: 20}, (20,), "cheaper up to 20 tokens, dearer from there (10 to 1,000 "),
        ({10: 100, 100: 10, 1000: 10_000}, (10**1.5, 10**2.5), "dearer up to 316, cheaper from"),
        ({5: 1, 10: 10, 100: 200}, (), "(10 to 100 tokens): cheaper throughout"),
    ],
    ids=["cheaper", "dearer", "once", "two lengths", "twice", "equal first"],
)
def test_crossing_lengths(other: dict[int, float], crossings: tuple[float, ...], says: str) -> None:
    found = compare(LINEAR, other)
    assert found is not None and says in str(found)
    assert found.crossings == pytest.approx(crossings)


def test_no_crossing_is_given_where_nothing_can_be_compared() -> None:
    assert compare({10: 1.0, 20: 2.0}, {20: 1.0, 40: 2.0}) is None
    assert compare(LINEAR, LINEAR) is None


@pytest.mark.parametrize("without", [("inference",), ("training",), ("inference", "training")])
def test_plots_leave_out_what_cost_nothing(without: tuple[str, ...], tmp_path: Path) -> None:
    common = {"what": "a", "batch": 1, "seconds": 1.0, "quartiles_s": [0.9, 1.1]}
    rows = [
        common | {"mode": mode, "tokens": tokens, "peak_bytes": 0 if mode in without else tokens}
        for mode in ("inference", "training")
        for tokens in (10, 20)
    ]
    assert draw({"rows": rows}, tmp_path) == [tmp_path / "time.png", tmp_path / "memory.png"]
    assert all(file.stat().st_size > 5000 for file in tmp_path.iterdir())
