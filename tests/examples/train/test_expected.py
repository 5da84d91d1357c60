"""The tables of docs/training.md."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("transformers", reason="needs transformers")

from examples.train import expected

PAGE = Path(__file__).parents[3] / "docs" / "training.md"
SLOW_TABLE = pytest.param(expected.memory_table, marks=pytest.mark.slow(seconds=10))


@pytest.mark.parametrize("table", [expected.parts_table, SLOW_TABLE])
def test_page_shows_what_the_command_prints(table) -> None:
    assert f"\n\n{table()}\n\n" in PAGE.read_text(encoding="utf-8")
