"""Every benchmark runs, on sizes that take no time, and prints what it says it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import evaluation, gpu, head, peak_memory

MEASURED = ["scan", "evaluation", "last layer", "output maps", "mixer"]


def test_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    options = ["--repeats", "1", "--length", "40", "--dim", "32", "--json", str(target)]
    monkeypatch.setattr(sys, "argv", ["head.py", *options])
    head.main()
    figures = json.loads(target.read_text())
    printed = capsys.readouterr().out
    for start in MEASURED:
        rows = [row for row in figures["ratios"] if row["what"].startswith(start)]
        assert rows and all(row["ratio"] > 0 and row["what"] in printed for row in rows), start
    assert {"processor", "threads", "torch", "date", "command"} <= set(figures["machine"])
    assert list(tmp_path.iterdir()) == [target]


def test_the_table_in_the_readme_is_the_one_of_the_kept_figures() -> None:
    root = Path(head.__file__).parent.parent
    figures = json.loads((root / "benchmarks" / "results" / "head.json").read_text())
    assert head.markdown_table(figures) in (root / "README.md").read_text(encoding="utf-8")


def test_no_time_is_given_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    original = head._scan_step

    def wrong(arguments: list, backend: str) -> tuple:
        scale = 1.01 if backend == "torch" else 1.0
        return tuple(gradient * scale for gradient in original(arguments, backend))

    monkeypatch.setattr(head, "_scan_step", wrong)
    monkeypatch.setattr(sys, "argv", ["head.py", "--repeats", "1", "--length", "9", "--dim", "32"])
    with pytest.raises(SystemExit, match="backend torch: the results differ"):
        head.main()


def evaluate(monkeypatch: pytest.MonkeyPatch, *options: str) -> None:
    sizes = ["--texts", "7", "--videos", "5", "--batch", "2", "--frames", "2", "--dim", "32"]
    monkeypatch.setattr(sys, "argv", ["evaluation.py", *sizes, "--repeats", "1", *options])
    evaluation.main()


def test_evaluation_counts_the_runs_of_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "figures.json"
    evaluate(monkeypatch, "--json", str(target))
    figures = json.loads(target.read_text())
    assert figures["evaluation"]["runs"] == {"once": 3, "per_pair": 12}
    assert evaluation.expected_runs(7, 5, 2) == {"once": 3, "per_pair": 12}
    printed = capsys.readouterr().out
    assert printed == evaluation.markdown_table(figures)
    assert "| 63 |" in printed and "| 3,969 |" in printed
    assert "--texts 7" in figures["machine"]["command"]


def test_evaluation_gives_no_time_where_the_ways_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation.MultiScaleMamba, "eval", lambda head: head)  # dropout stays on
    with pytest.raises(SystemExit, match="the similarities differ by"):
        evaluate(monkeypatch)


def test_peak_memory(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["m", "--frames", "2", "--grid", "4", "--dim", "16"])
    peak_memory.main()
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 2 * (1 + 4 + 16 + 64) and result["peak_gib"] > 0


@pytest.mark.slow
def test_a_long_video_trains_in_little_memory() -> None:
    """64 frames of 14x14 patches, 65,920 tokens of width 512: forward and backward in 4.5 GiB."""
    result = head.peak_memory()
    assert result["tokens"] == 65_920
    assert result["peak_gib"] < 4.5


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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: torch finds none")
def test_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "figures.json"
    sizes = ["--batch", "1", "--length", "100", "--dim", "64", "--repeats", "1", "--no-heads"]
    monkeypatch.setattr(sys, "argv", ["gpu.py", *sizes, "--json", str(target)])
    gpu.main()
    figures = json.loads(target.read_text())
    assert figures["scan"]["seconds"]["triton"] > 0 and figures["machine"]["gpu"]
