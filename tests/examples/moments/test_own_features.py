"""Training on the files of PRVR code, and the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("numpy", reason="the example draws with numpy")
pytest.importorskip("safetensors", reason="the best weights are saved as safetensors")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments import own_features
from examples.moments.__main__ import main
from examples.moments.own_features import linear_rate, train_on_features
from muse_adapter import MamFusionConfig
from muse_adapter.data.prvr import PrvrDataset, open_prvr
from muse_adapter.presets import MAMFUSION_SETTINGS
from tests.support.prvr_files import WIDTH, word_features, write_collection

pytestmark = pytest.mark.usefixtures("torch_scan")
PRESET = replace(
    MAMFUSION_SETTINGS["tvr"],
    config=MamFusionConfig(visual_width=1, text_width=1, hidden=8, heads=2, num_clips=4),
    batch_size=2,
    hard_negatives_from=1,
)


@pytest.fixture
def splits(tmp_path: Path) -> dict[str, PrvrDataset]:
    """A collection of four videos, from its files."""
    write_collection(tmp_path / "data")
    return open_prvr(tmp_path / "data", "tvr", words=word_features())


@pytest.mark.slow
def test_training_on_files_goes_on_to_the_same_bits(
    splits: dict[str, PrvrDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"epochs": 3, "progress": False}
    whole = train_on_features(splits, PRESET, tmp_path / "whole", **options)
    assert whole["videos"] == {"train": 2, "val": 1, "test": 2}
    assert len(whole["validation_sum_r"]) == 3
    assert set(whole["test"]) == {"R@1", "R@5", "R@10", "R@100", "SumR"}
    config = json.loads((tmp_path / "whole" / "model" / "config.json").read_text())
    assert config["visual_width"] == WIDTH

    epochs = []
    original = own_features._train_epoch

    def interrupted(*arguments: object) -> None:
        epochs.append(arguments[4])
        if len(epochs) == 2:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(own_features, "_train_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train_on_features(splits, PRESET, tmp_path / "parts", **options)
    assert train_on_features(splits, PRESET, tmp_path / "parts", **options) == whole
    assert epochs == [0, 1, 1, 2]
    one, other = (torch.load(tmp_path / name / "checkpoint.pt") for name in ("whole", "parts"))
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name

    with pytest.raises(ValueError, match="is of other settings or features"):
        train_on_features(splits, PRESET, tmp_path / "parts", epochs=4, progress=False)


def test_training_stops_without_a_better_validation(
    splits: dict[str, PrvrDataset], tmp_path: Path
) -> None:
    result = train_on_features(
        splits, replace(PRESET, patience=2), tmp_path, epochs=9, progress=False
    )
    assert (
        len(result["validation_sum_r"]) == 3
    )  # a single video is always found: 400 from the start


def test_learning_rate_rises_and_falls_to_zero() -> None:
    rates = [linear_rate(step, 20, 0.1) for step in range(20)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[-1] == pytest.approx(1 / 18)
    assert rates[2:] == sorted(rates[2:], reverse=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "--data and --dataset belong together"),
        (["--dataset", "tvr"], "--data and --dataset belong together"),
        (["--data", "nowhere", "--dataset", "tvr"], "missing are"),
        (["--data", "nowhere", "--dataset", "tvr", "--compare"], "leave out --data"),
        (["--data", "nowhere", "--dataset", "tvr", "--confirm", "5"], "leave out --data"),
        (["--confirm", "5"], "there is no study in moments-output: run --compare first"),
        (["--confirm", "5", "--compare"], "--confirm trains nothing: leave out --compare"),
        (["--compare", "--seed", "2"], "--compare takes --seeds, got --seed 2"),
        (["--compare", "--seeds", "1", "0", "1"], "--seeds must not repeat a value, got 1 0 1"),
        (["--rates", "0.001"], "--rates is of --compare: give both or none"),
        (["--epochs", "0"], "--epochs must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
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
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
