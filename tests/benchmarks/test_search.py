"""The benchmark of searching an index, on small ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")

from benchmarks import search
from muse_adapter.search.store import open_store


def test_small_sizes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_flat_index", lambda: None)  # faiss may be here or not
    target, folder = tmp_path / "figures.json", tmp_path / "folder"
    folder.mkdir()
    search.main(
        ["--sizes", "70", "1100", "--repeats", "2", "--json", str(target), "--folder", str(folder)]
    )
    figures = json.loads(target.read_text())
    assert [row["segments"] for row in figures["rows"]] == [70, 1100]
    assert all(value > 0 for row in figures["rows"] for value in row.values())
    printed = capsys.readouterr().out
    assert printed.count("\n| ") == 3 and "| 1,100 | 1," in printed
    assert not list(folder.iterdir())


def test_wrong_answers_are_no_figures(tmp_path: Path) -> None:
    search.measure(tmp_path, 70, repeats=2)
    table = open_store(tmp_path, "videos").read()
    queries = torch.eye(search.DIM)[: search.QUERIES]
    with pytest.raises(RuntimeError, match="of 64 queries did not find their video"):
        search.check(table, queries, torch.arange(search.QUERIES))


def test_a_single_query(tmp_path: Path) -> None:
    row = search.measure(tmp_path, 70, repeats=1)
    assert row["p50"] == row["p95"] > 0


def test_targets_and_faiss_in_the_table() -> None:
    figures = ("bytes", "build", "opening", "first", "p50", "p95", "together", "names", "verify")
    row = {"segments": search.FIRST_SIZE, **dict.fromkeys(figures, 0.5)}
    about = {"processor": "a processor", "threads": 2, "torch": "2", "date": "2026-01-01"}
    about |= {"command": "a command", "python": "3", "muse_adapter": "0", "code": "0"}
    beside = {"faiss_p50": 1.0, "faiss_p95": 1.0, "faiss_together": 1.5}
    table = search.markdown_table({"machine": about, "rows": [row | beside]})
    assert "the first query takes 1.00 s, target 1 s: missed" in table
    assert "| 500 ms | 1,500 ms | 3.0 |" in table
    assert "faiss" not in search.markdown_table({"machine": about, "rows": [row]})
