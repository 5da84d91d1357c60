"""The command line of `python -m benchmarks`, on tiny sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.heads import rows
from benchmarks.heads.flops import count
from benchmarks.heads.workload import PRESETS, Settings
from tests.support.small_benchmarks import HERE, ON_CPU, RUN, SMALL, FakeMeasure


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are measured in this process, which has everything loaded."""
    monkeypatch.setattr(rows, "isolated", lambda function, *given, **_: function(*given))
    # To count a scan takes seconds, and has tests of its own.
    scans = ("muse", "mamba", "conv")
    monkeypatch.setattr(
        rows, "count", lambda head, *given: 1 if head.function in scans else count(head, *given)
    )


def test_every_head_is_measured_written_and_drawn(
    here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target, plots = tmp_path / "heads.json", tmp_path / "plots"
    command = [*SMALL, "--frames", "1", "--json", str(target), "--plot", str(plots)]
    command += ["--limit", "0.05", "--heads", *HERE]
    assert main(command) == 0
    figures, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert {"processor", "threads", "torch", "date", "command", "code"} <= set(figures["machine"])
    assert len(figures["rows"]) == 2 * len(HERE)
    for row in figures["rows"]:
        low, high = row["quartiles_s"]
        assert 0 < low <= row["seconds"] <= high and row["runs"] > 0
        assert row["peak_bytes"] >= 0 and row["held_bytes"] > 0
        assert row["tokens_per_s"] == pytest.approx(5 / row["seconds"])
        assert row["what"] in printed and "date" in row
    sizes = {row["head"]: row["parameters"] for row in figures["rows"]}
    assert sizes["meanP"] == 0 and sizes["muse-torch"] > sizes["mamba"] > sizes["conv"]
    assert "head runs" in printed and "computed from measured parts" in printed
    assert sorted(path.name for path in plots.iterdir()) == ["memory.png", "time.png"]
    assert all(path.stat().st_size > 10_000 for path in plots.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "slow"], "invalid choice: 'slow'"),
        (["--frames", "0"], "expected a positive whole number, got '0'"),
        (["--batch", "two"], "expected a positive whole number, got 'two'"),
        (["--grid", "1"], "sides of at least 2 patches, such as 7 or 7x14, got '1'"),
        (["--grid", "7x7x7"], "got '7x7x7'"),
        (["--limit", "-1"], "expected seconds above 0, got '-1'"),
        (["--dim", "96"], "expected an even width up to 64 or a multiple of 64"),
        (["--heads", "muse-fast"], "unknown head 'muse-fast', expected some of muse-numba"),
        (["--heads", "attention-cudnn"], "attention-cudnn cannot run here: torch does not offer"),
        (["--json", "no/such/heads.json"], "the folder no/such is not there"),
        (["--plot", "no/such/plots"], "the folder no/such is not there"),
        (["--json", "."], "is a folder, expected a file"),
    ],
)
def test_bad_options(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        main(["--device", "cpu", *options])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--device", "cuda"])
    assert "torch finds no GPU" in capsys.readouterr().err


def test_a_bounded_run_says_what_it_left_out(
    fake: FakeMeasure, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*RUN, "--total", "1e-9"]) == 0
    printed = capsys.readouterr().out
    assert fake.asked == [] and "left out are the evaluation as a whole and" in printed
    assert "muse-torch (" in printed
    assert PRESETS["quick"].total_s == 120


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_presets(preset: Settings) -> None:
    assert {7, 12} & {*preset.frames, preset.grids[0][0]} == {7, 12}
    assert set(preset.leave_out) <= set(ON_CPU)
    cases = list(preset.cases())
    count = len(preset.frames) * len(preset.grids) * len(preset.batches)
    assert len(cases) == len(set(cases)) == 2 * count
