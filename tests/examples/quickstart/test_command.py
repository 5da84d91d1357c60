"""The command line: what it refuses, and in which words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from tests.support.quickstart import run_command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search"], "search expects words"),
        (["search", "a red circle"], "nothing was trained in"),
        (["--html", "page.html"], "--html is of search: give both or none"),
        (["--videos", "somewhere"], "--videos and --captions belong together"),
        (["--captions", "some.csv"], "--videos and --captions belong together"),
        (["--videos", "nowhere", "--captions", "no.csv"], "no such file of captions: no.csv"),
        (["--clips", "3"], "train must be an even number of at least 2 clips, got 3"),
        (["--clips", "4", "--videos", "v", "--captions", "c"], "--clips is of the rendered corpus"),
        (["--train-backbone"], "--train-backbone needs --backbone FOLDER"),
        (["--backbone", "nowhere"], "expects the folder of a Hugging Face CLIP"),
        (["--steps", "0"], "steps must be at least 1, got 0"),
        (["--size", "30"], "size must be a multiple of 8, got 30"),
        (["--num-frames", "0"], "num_frames must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--device", "tpu"], "--device must be cpu or cuda, got tpu"),
        (["--entries", "muse"], "--entries is a part of the study: it needs --compare"),
        (["--compare", "--entries", "muse,moose"], "eercf, mean_max_sim, got moose"),
        (["--compare", "--entries", "muse,muse"], "must not repeat a name, got muse,muse"),
        (["--compare", "--seed", "1"], "--compare runs the seeds 0, 1 and 2, got --seed 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_command_line_says_what_is_wrong(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(*arguments) == 2
    assert message in capsys.readouterr().err


def test_a_device_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert run_command("--device", "cuda:1") == 2
    assert "--device cuda:1 is not there: torch finds no CUDA device" in capsys.readouterr().err


def test_progress_bars_are_named_with_their_install_line() -> None:
    code = "import sys; sys.modules['tqdm'] = None; import examples.quickstart"
    root = Path(__file__).parents[3]
    run = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert "ImportError: the quickstart needs tqdm: pip install 'muse-adapter[bench]'" in run.stderr
