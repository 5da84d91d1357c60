"""Every benchmark runs, on sizes that take no time, and prints what it says it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu, head, peak_memory, scan

on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds none")
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


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=on_gpu)])
def test_scan(
    device: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    target = tmp_path / "figures.json"
    options = ["--repeats", "1", "--lengths", "9", "20", "--dim", "16", "--json", str(target)]
    options += ["--device", device]
    monkeypatch.setattr(sys, "argv", ["scan.py", *options])
    monkeypatch.setattr(scan, "LONGEST_REFERENCE", 9)
    scan.main()
    figures = json.loads(target.read_text())
    rows = {(row["length"], row["backend"]) for row in figures["rows"]}
    assert {(9, "reference"), (9, "torch"), (20, "torch")} <= rows
    assert (20, "reference") not in rows
    for row in figures["rows"]:
        assert row["forward_s"] > 0 and row["training_s"] > 0
        assert row["peak_gib"] > (0.05 if device == "cpu" else 0)
    assert scan.markdown_table(figures) in capsys.readouterr().out
    assert figures["machine"]["command"].startswith("python -m benchmarks.scan --repeats 1")
    assert list(tmp_path.iterdir()) == [target]


def test_the_kept_figures_keep_what_is_promised() -> None:
    """The torch backend at least twice as fast as the definition, 65,920 tokens in 4.5 GiB."""
    results = Path(head.__file__).parent / "results"
    rows = json.loads((results / "scan.json").read_text())["rows"]
    at = {row["backend"]: row for row in rows if row["length"] == 3060}
    for kind in ("forward_s", "training_s"):
        assert at["reference"][kind] >= 2 * at["torch"][kind]
    memory = json.loads((results / "head.json").read_text())["memory"]
    assert memory["tokens"] == 65_920 and memory["peak_gib"] < 4.5


def test_no_time_is_given_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    original = scan.step

    def wrong(inputs: list, backend: str) -> tuple:
        scale = 1.01 if backend == "torch" else 1.0
        return tuple(result * scale for result in original(inputs, backend))

    monkeypatch.setattr(scan, "step", wrong)
    monkeypatch.setattr(sys, "argv", ["scan.py", "--repeats", "1", "--lengths", "9", "--dim", "32"])
    with pytest.raises(SystemExit, match="backend torch: the results differ"):
        scan.main()


def test_scan_on_a_gpu_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["scan.py", "--device", "cuda"])
    with pytest.raises(SystemExit):
        scan.main()
    assert "--device cuda needs a GPU: torch finds none" in capsys.readouterr().err


def test_peak_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["m", "--frames", "2", "--grid", "4", "--dim", "16"])
    peak_memory.main()
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 2 * (1 + 4 + 16 + 64) and result["peak_gib"] > 0


@pytest.mark.slow
def test_a_long_video_trains_in_little_memory() -> None:
    """64 frames of 14x14 patches, 65,920 tokens of width 512: forward and backward in 4.5 GiB.

    A whole layer and the last one; with checkpointing each of the two others keeps its input alone.
    """
    result = head.peak_memory("--depth", "2")
    assert result["tokens"] == 65_920
    inputs = 2 * result["tokens"] * 512 * 4 / 2**30
    assert result["peak_gib"] + inputs < 4.5


def test_gpu_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="needs a GPU"):
        gpu.main()


def test_floors_on_a_gpu_of_round_numbers() -> None:
    about = {"processors": 100, "clock_hz": 1e9, "copy_bytes_per_s": 1e12}
    floors = gpu.floors(1, 10, 100, about)
    states = 2 * 10 * 100 * 16
    assert floors["exponentials"]["seconds"] == pytest.approx(2 * states / 1.6e12)
    assert floors["multiply_adds"]["seconds"] == pytest.approx(15 * states / 1.28e13)
    moved = 2 * 18 * 1000 + 2 * 3 * (2 * 2 * 10 * 16)
    assert floors["bytes"]["seconds"] == pytest.approx(moved / 1e12)
    assert f"{moved:,}" in floors["bytes"]["arithmetic"]


def test_gpu_gives_no_time_where_results_differ() -> None:
    with pytest.raises(SystemExit, match=r"x: the results differ by 1\.0e-01"):
        gpu.agree((torch.full((3,), 1.1),), (torch.ones(3),), ["x"])


@on_gpu
def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "figures.json"
    sizes = ["--batch", "1", "--length", "100", "--dim", "64", "--repeats", "1", "--no-heads"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *sizes, "--json", str(target)])
    gpu.main()
    figures = json.loads(target.read_text())
    assert figures["scan"]["seconds"]["triton"] > 0 and figures["machine"]["gpu"]
