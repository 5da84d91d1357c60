"""The benchmark of the scan runs, on sizes that take no time, and prints what it says it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import scan
from benchmarks.isolated import isolated

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_scan(
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "figures.json"
    options = ["--repeats", "1", "--lengths", "4", "7", "--dim", "16", "--json", str(target)]
    options += ["--device", device]
    # In this process: what an isolated one measures is below.
    monkeypatch.setattr(scan, "isolated", lambda function, *given: function(*given))
    monkeypatch.setattr(sys, "argv", ["scan.py", *options])
    monkeypatch.setattr(scan, "LONGEST_REFERENCE", 4)
    scan.main()
    figures = json.loads(target.read_text())
    rows = {(row["length"], row["backend"]) for row in figures["rows"]}
    assert {(4, "reference"), (4, "torch"), (7, "torch")} <= rows
    assert (7, "reference") not in rows
    for row in figures["rows"]:
        assert row["forward_s"] > 0 and row["training_s"] > 0
        assert row["peak_gib"] > (0.05 if device == "cpu" else 0)
    assert scan.markdown_table(figures) in capsys.readouterr().out
    assert figures["machine"]["command"].startswith("python -m benchmarks.scan --repeats 1")
    assert list(tmp_path.iterdir()) == [target]


def test_no_time_is_given_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    original = scan.step

    def wrong(inputs: list, backend: str) -> dict:
        scale = 1.01 if backend == "torch" else 1.0
        return {name: value * scale for name, value in original(inputs, backend).items()}

    monkeypatch.setattr(scan, "step", wrong)
    monkeypatch.setattr(sys, "argv", ["scan.py", "--repeats", "1", "--lengths", "9", "--dim", "32"])
    with pytest.raises(SystemExit, match=r"backend torch: y differs by .*, so no time is given"):
        scan.main()


def test_scan_on_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["scan.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        scan.main()
    assert "--device cuda needs a GPU: torch finds none" in capsys.readouterr().err


@pytest.mark.slow
def test_peak_memory_of_an_interpreter_of_its_own() -> None:
    """That of torch, without what this process has used before."""
    assert 0.05 < isolated(scan.peak_gib, "torch", 9, 16, "cpu") < 1
