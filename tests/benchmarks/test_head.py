"""The benchmark of the head runs, on sizes that take no time, and prints what it says it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import head

MEASURED = ["inference", "evaluation", "last layer", "output maps", "mixer"]


def test_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    options = ["--repeats", "1", "--length", "40", "--dim", "32", "--grids", "2"]
    options += ["--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["head.py", *options])
    head.main()
    figures = json.loads(target.read_text())
    printed = capsys.readouterr().out
    for start in MEASURED:
        rows = [row for row in figures["ratios"] if row["what"].startswith(start)]
        assert rows and all(row["ratio"] > 0 and row["what"] in printed for row in rows), start
    assert {"processor", "threads", "torch", "date", "command"} <= set(figures["machine"])
    assert list(tmp_path.iterdir()) == [target]
