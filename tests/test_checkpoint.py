"""Saving and loading heads: round trips, failed saves, strict loading."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from torch import nn

from muse_adapter.checkpoint import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    load_pretrained,
    load_strict,
    save_pretrained,
)
from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba
from tests.support.checkpoints import CONFIG, assert_equal, copy_of, randomised, save_head

safetensors = pytest.importorskip("safetensors", reason="checkpoints need safetensors")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_head(tmp_path / "saved")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MuseConfig(dim=8, in_dim=6, scales=(4.0, 0.25), depth=1, aggregation="frame_wise"),
        MuseConfig(dim=8, depth=1, mixer="attention", num_prefix_tokens=0, init="release"),
        MuseConfig(dim=8, depth=1, mixer="mamba", expand=2, dropout=0.3),
        MuseConfig(dim=8, depth=1, mixer="conv", aggregation="spatial_wise"),
    ],
    ids=lambda config: f"{config.mixer}-{config.aggregation}",
)
def test_from_pretrained_gives_the_head_back(config: MuseConfig, tmp_path: Path) -> None:
    head = randomised(MultiScaleMamba(config))
    head.save_pretrained(tmp_path / "new" / "folder")
    again = MultiScaleMamba.from_pretrained(tmp_path / "new" / "folder")
    assert again.config == config
    assert_equal(again.state_dict(), head.state_dict())


def test_files_are_plain(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [CONFIG_NAME, WEIGHTS_NAME]
    values = json.loads((saved / CONFIG_NAME).read_text())
    assert MuseConfig.from_dict(values) == CONFIG
    with safetensors.safe_open(saved / WEIGHTS_NAME, framework="pt") as file:
        assert set(file.keys()) == set(MultiScaleMamba(CONFIG).state_dict())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_types_are_kept_in_the_file(dtype: torch.dtype, tmp_path: Path) -> None:
    head = randomised(MultiScaleMamba(CONFIG).to(dtype))
    save_pretrained(head, tmp_path)
    _, state = load_pretrained(tmp_path)
    assert {value.dtype for value in state.values()} == {dtype}
    assert all(torch.equal(state[name], value) for name, value in head.state_dict().items())


def test_channels_last_and_shared_memory_are_saved(tmp_path: Path) -> None:
    head = randomised(MultiScaleMamba(CONFIG)).to(memory_format=torch.channels_last)
    head.layers[1].norm.weight = head.layers[0].norm.weight
    save_pretrained(head, tmp_path)
    assert_equal(MultiScaleMamba.from_pretrained(tmp_path).state_dict(), head.state_dict())


def test_saving_again_replaces(saved: Path) -> None:
    config = dataclasses.replace(CONFIG, depth=1)
    head = randomised(MultiScaleMamba(config))
    head.save_pretrained(saved)
    again = MultiScaleMamba.from_pretrained(str(saved))
    assert again.config == config
    assert_equal(again.state_dict(), head.state_dict())


@pytest.mark.parametrize("when", ["write", "rename"])
def test_a_failed_save_leaves_what_was_there(
    when: str, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync" if when == "write" else "replace", fail)
    with pytest.raises(OSError, match=r"cannot write the head to '.*saved'.*No space left"):
        save_pretrained(MultiScaleMamba(CONFIG), saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("below", ["file", "file/folder"])
def test_a_target_that_cannot_be_a_folder(below: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    with pytest.raises(OSError, match=r"cannot write the head to .*file"):
        save_pretrained(MultiScaleMamba(CONFIG), tmp_path / below)
    assert (tmp_path / "file").read_text() == "kept"


def test_only_a_head_can_be_saved(tmp_path: Path) -> None:
    wrapper = nn.Sequential(MultiScaleMamba(CONFIG))
    with pytest.raises(TypeError, match=r"MuseConfig or MamFusionConfig.*got Sequential"):
        save_pretrained(wrapper, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_load_strict_lists_everything_and_changes_nothing() -> None:
    head = MultiScaleMamba(CONFIG)
    before = copy_of(head)
    state: dict = copy_of(randomised(MultiScaleMamba(CONFIG)))
    del state["layers.0.fc.bias"], state["pyramid.stages.1.0.weight"]
    state["extra.weight"] = torch.zeros(2)
    state["layers.1.norm.weight"] = torch.zeros(3)
    state["layers.1.norm.bias"] = torch.zeros(8, dtype=torch.int64)
    state["layers.1.fc.bias"] = [0.0] * 8
    with pytest.raises(ValueError) as caught:
        load_strict(head, state)
    assert str(caught.value).splitlines() == [
        "the state dict does not fit the head (6 problems):",
        "  missing pyramid.stages.1.0.weight",
        "  missing layers.0.fc.bias",
        "  unexpected extra.weight",
        "  layers.1.norm.weight must have shape (8,), got (3,)",
        "  layers.1.norm.bias must be of a type like torch.float32, got torch.int64",
        "  layers.1.fc.bias must be a tensor, got list",
    ]
    assert_equal(head.state_dict(), before)


def test_load_strict_casts() -> None:
    source = copy_of(randomised(MultiScaleMamba(CONFIG)).half())
    head = MultiScaleMamba(CONFIG).double()
    load_strict(head, source)
    assert_equal(head.state_dict(), {name: value.double() for name, value in source.items()})
