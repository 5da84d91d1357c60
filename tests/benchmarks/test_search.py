"""The benchmark of searching an index, on small ones."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("fcntl", reason="writing a table needs POSIX locks")

from benchmarks import search, search_stores
from benchmarks.kept_rows import KeptRows
from benchmarks.machine import ROOT, machine
from benchmarks.search_stores import FLAT, FOLDER
from benchmarks.vectors import BLOCK, QUERIES, Vectors

FOLDERS = [FOLDER, "folder, second stage"]


def test_small_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target, folder = tmp_path / "figures.json", tmp_path / "folder"
    arguments = ["--sizes", "70", "1100", "--repeats", "2", "--json", str(target)]
    arguments += ["--stores", *FOLDERS, "--folder", str(folder)]
    search.main(arguments)
    rows = json.loads(target.read_text())["rows"]
    assert [(row["segments"], row["store"]) for row in rows] == [
        (size, store) for size in (70, 1100) for store in FOLDERS
    ]
    assert all(row["recall"] == 1 for row in rows if row["store"] == FOLDER)
    assert all(row[key] > 0 for row in rows for key in ("append", "p50", "p95", "together"))
    printed = capsys.readouterr().out
    assert printed.count("| 1,100 |") == 3 and "Left out" not in printed
    assert not list(folder.iterdir())
    search.main(arguments)
    assert json.loads(target.read_text())["rows"] == rows, "what is there is not measured again"


def test_a_call_goes_on_with_the_one_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call that has no time, one that only builds, and one that finishes."""
    target = tmp_path / "figures.json"
    arguments = ["--sizes", "70", "--repeats", "1", "--json", str(target), "--stores", FOLDER]
    arguments += ["--folder", str(tmp_path)]
    search.main([*arguments, "--minutes", "0"])
    assert "Left out, in the time that the calls had: folder at 70." in capsys.readouterr().out
    search.main([*arguments, "--only-build", "--busy"])
    figures = json.loads(target.read_text())
    assert figures["rows"] == [] and figures["begun"][0]["appended"] == 70
    search.main(arguments)
    figures = json.loads(target.read_text())
    (row,) = figures["rows"]
    assert row["busy"] and row["p50"] == row["p95"] and figures["begun"] == []
    assert " s \\* |" in capsys.readouterr().out


def test_figures_and_index_must_agree(tmp_path: Path) -> None:
    search_stores.Folder(tmp_path / "folder-70", Vectors(70, search.DIM)).store.close()
    rows = KeptRows(None, minutes=1)
    rows.begin(FOLDER, 70)["appended"] = 70
    options = argparse.Namespace(busy=False, only_build=False, repeats=1)
    with pytest.raises(RuntimeError, match="has 0 segments of 70: delete it"):
        search.measure(tmp_path, rows, options, 70, FOLDER)


def test_figures_of_other_code_are_not_gone_on_with(tmp_path: Path) -> None:
    KeptRows(tmp_path / "figures.json", minutes=1).save()
    figures = json.loads((tmp_path / "figures.json").read_text())
    figures["machine"]["code"] = "another"
    (tmp_path / "figures.json").write_text(json.dumps(figures))
    with pytest.raises(SystemExit, match=r"figures\.json holds figures of other code"):
        KeptRows(tmp_path / "figures.json", minutes=1)


def test_the_exact_answers() -> None:
    vectors = Vectors(BLOCK + 30, 8)
    everything = torch.cat([vectors.block(0), vectors.block(1)])
    assert everything.equal(everything.half().float()) and len(everything) == BLOCK + 30
    scores = vectors.queries.double() @ everything.double().T
    assert vectors.best(3) == scores.topk(3).indices.tolist()
    assert vectors.best(3, lambda block: -vectors.queries @ block.T)[0] != vectors.best(3)[0]
    assert len(vectors.targets) == QUERIES and vectors.block(1).equal(
        Vectors(2000, 8).block(1)[:30]
    )


@pytest.mark.parametrize(
    ("found", "recall"), [([[1, 2], [3, 4]], 1), ([[2, 1], [9, 4]], 0.75), ([[], [5]], 0)]
)
def test_recall(found: list[list[int]], recall: float) -> None:
    assert search.recall(found, [[1, 2], [3, 4]]) == recall


def test_targets_in_the_table() -> None:
    keys = ("bytes", "append", "opening", "first", "p50", "p95", "together", "names", "verify")
    row = {"segments": search.FIRST_SIZE, "store": FOLDER, **dict.fromkeys(keys, 0.5)}
    row |= {"busy": False, "recall": 1.0, "command": "a command", "read": 0}
    about = {"processor": "a processor", "threads": 2, "torch": "2", "date": "2026-01-01"}
    about |= {"command": "a command", "python": "3", "muse_adapter": "0", "code": "0"}
    figures = {"machine": about, "rows": [row], "left_out": []}
    table = search.markdown_table(figures)
    assert "faiss" not in table and "while others" not in table
    assert "page cache, as after writing them: nothing is read from the disk. Recall" in table
    figures["rows"] = [row | {"read": 2_500_000}]
    assert "but in folder at 1,000,000, whose timed searches read 2.5 MB" in search.markdown_table(
        figures
    )
    busy = search.markdown_table(figures | {"rows": [row | {"busy": True}]})
    assert "Built \\*: while others used the machine." in busy
    figures["rows"] = [row | {"store": FLAT, "together": 1.5, "recall": 0.876}, row]
    table = search.markdown_table(figures)
    assert "the first query takes 1.00 s, target 1 s: missed" in table
    assert "take 3 times less time than in faiss's flat index, target 1: met" in table
    assert "| 43 | 87.6 % |" in table and "also came from" not in table
    figures["rows"] = [row | {"recall": None, "command": "another"}]
    table = search.markdown_table(figures)
    assert "| not measured |" in table and "Rows also came from `another`." in table


def test_the_command_that_is_kept_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    file = str(ROOT / "benchmarks" / "search.py")
    monkeypatch.setattr(sys, "argv", [file, "--stores", "folder", "faiss, flat"])
    assert machine()["command"] == "python -m benchmarks.search --stores folder 'faiss, flat'"


def test_faiss(tmp_path: Path) -> None:
    """It goes on from its file, and finds what it should."""
    pytest.importorskip("faiss", reason="faiss is not installed")
    vectors = Vectors(BLOCK + 30, search.DIM)
    for name in (FLAT, "faiss, HNSW"):
        folder = tmp_path / name
        folder.mkdir()
        for number in range(2):
            searched = search_stores.STORES[name](folder, vectors)
            assert len(searched) == number * BLOCK
            searched.append(vectors.block(number))
            searched.save()
        found = searched.numbers(searched.search(vectors.queries))
        assert search.recall(found, searched.best()) > (0.999 if name == FLAT else 0.9)
