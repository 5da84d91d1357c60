"""Settings of a run, its schedule, and the command line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("datasets", reason="needs datasets: muse-adapter[train]")

from examples.train.__main__ import main
from examples.train.data import load_parts
from examples.train.folder import LeftOut, check_same_run, keep_run
from examples.train.settings import Execution, RunSettings
from examples.train.trainer import SaveEvery, learning_rate_factor

PLACES = {"annotations": "a", "videos": "v", "model": "m"}


@pytest.mark.parametrize(
    ("data_set", "expected"),
    [
        ("msrvtt", {"frames": 12, "words": 32, "batch_size": 128, "epochs": 5}),
        ("msrvtt-7k", {"frames": 12, "words": 32, "batch_size": 128, "epochs": 5}),
        ("activitynet", {"frames": 64, "words": 64, "batch_size": 128, "epochs": 5}),
        ("lsmdc", {"frames": 12, "words": 32, "head_lr_scale": 10.0, "lr": 1e-4}),
    ],
)
def test_settings_of_a_data_set(data_set: str, expected: dict[str, Any]) -> None:
    settings = RunSettings.of(data_set, **PLACES, seed=None)
    assert {name: getattr(settings, name) for name in expected} == expected
    assert RunSettings.of(data_set, **PLACES, frames=7).frames == 7


# Learning rates of the head in the published log of MSR-VTT, rounded there.
@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.0), (50, 7.11e-5), (700, 9.957e-4), (750, 9.722e-4), (2800, 6.571e-4), (5100, 1.747e-4)],
)
def test_schedule_is_that_of_the_published_log(step: int, rate: float) -> None:
    assert 1e-3 * learning_rate_factor(step, 7030, 0.1) == pytest.approx(rate, abs=6e-8)


@pytest.mark.parametrize(
    ("step", "epoch", "saved"), [(2, 0.5, True), (3, 0.75, False), (4, 1.0, False)]
)
def test_checkpoints_within_an_epoch(step: int, epoch: float, saved: bool) -> None:
    """The one at its end is written behind the evaluation, and only once."""
    control = SimpleNamespace(should_save=False)
    state = SimpleNamespace(global_step=step, epoch=epoch)
    SaveEvery(2).on_step_end(None, state, control)
    assert control.should_save is saved


def test_a_video_under_two_names_is_refused(tmp_path: Path) -> None:
    """It would be trained on and tested with."""
    (tmp_path / "dog.mp4").touch()
    table = tmp_path / "captions.csv"
    table.write_text("video,caption,split\ndog,a dog,train\ndog.mp4,a dog,test\n")
    places = {"annotations": str(table), "videos": str(tmp_path), "model": "m"}
    with pytest.raises(ValueError, match=r"1 videos have two names, the first dog and dog\.mp4$"):
        load_parts(RunSettings.of("csv", **places, validate=False))


def test_another_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    execution = Execution(output=tmp_path / "run")
    settings = RunSettings.of("msvd", **PLACES)
    check_same_run(settings, execution)
    assert not execution.output.exists()
    keep_run(settings, execution, LeftOut([], {}))
    check_same_run(settings, execution)
    with pytest.raises(ValueError, match="holds a run with seed 0 and not 1: use another --output"):
        check_same_run(RunSettings.of("msvd", **PLACES, seed=1), execution)
    with pytest.raises(ValueError, match="holds a run with processes 1 and not 2"):
        check_same_run(settings, Execution(output=tmp_path / "run", processes=2))


def test_command_names_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--annotations", str(tmp_path), "--videos", "v", "--model", "m"]
    assert main(["msvd", *places, "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert "missing are" in error and "raw-captions.pkl" in error
    assert not (tmp_path / "run").exists()
