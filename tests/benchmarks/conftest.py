"""Fixtures of the benchmarks' tests."""

from __future__ import annotations

import pytest

from benchmarks.heads import rows
from tests.support.small_benchmarks import FakeMeasure


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeMeasure:
    """Rows come from a `FakeMeasure`, and all heads agree with their definitions."""
    made = FakeMeasure()
    monkeypatch.setattr(rows, "_outcome", made)
    monkeypatch.setattr(rows, "count", lambda head, case, dim: 10 * case.tokens)
    monkeypatch.setattr(rows, "against_definition", lambda head, settings: None)
    return made
