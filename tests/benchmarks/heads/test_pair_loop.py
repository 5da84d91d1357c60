"""The evaluation as a whole, once per pair against once per video."""

from __future__ import annotations

import pytest

from benchmarks.heads import pair_loop
from tests.support.small_benchmarks import THREADS, small


def test_pair_loop() -> None:
    row = pair_loop.measure_pairs(small(pairs=5, pair_batch=2, threads=int(THREADS)))
    measured, computed = row["measured"], {part["size"]: part for part in row["computed"]}
    assert measured["size"] == 5 and measured["head_runs"] == {"ours": 3, "published": 9}
    assert 0 < measured["seconds"]["ours"] < measured["seconds"]["published"]
    assert computed.keys() == {5, 200, 1000}
    assert computed[1000]["head_runs"] == {"ours": 500, "published": 250_000}
    head, product = row["head_run_s"][1], row["product_s"][1]
    assert computed[200]["seconds"]["ours"] == pytest.approx(100 * head + 10_000 * product)
    assert computed[200]["seconds"]["published"] == pytest.approx(10_000 * (head + product))


def test_the_ways_of_evaluating_must_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    original = pair_loop.Evaluation.ours
    monkeypatch.setattr(pair_loop.Evaluation, "ours", lambda self: original(self) * 1.01)
    with pytest.raises(RuntimeError, match="the similarity differs by"):
        pair_loop.measure_pairs(small(threads=int(THREADS)))
