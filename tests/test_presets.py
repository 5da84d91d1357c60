"""The papers' training settings."""

from __future__ import annotations

import inspect

import pytest

from muse_adapter.config import MuseConfig
from muse_adapter.presets import PAPER_SETTINGS, TrainingSettings
from muse_adapter.training.optim import param_groups


@pytest.mark.parametrize(
    ("data_set", "frames", "words"),
    [("msrvtt", 12, 32), ("didemo", 64, 64), ("activitynet", 64, 64)],
)
def test_paper_settings(data_set: str, frames: int, words: int) -> None:
    settings = PAPER_SETTINGS[data_set]
    assert (settings.frames, settings.words) == (frames, words)
    assert settings.lr == 1e-4
    assert settings.lr * settings.head_lr_scale == pytest.approx(1e-3)
    assert settings.lr * settings.backbone_lr_scale == pytest.approx(1e-7)
    # The head that the settings describe is the default one.
    config = MuseConfig.from_sides(settings.sides, grid=(7, 7), depth=settings.depth)
    assert config == MuseConfig()


def test_unknown_data_sets_name_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown data set 'MSR-VTT'; known are msrvtt, didemo, act"):
        PAPER_SETTINGS["MSR-VTT"]
    assert "MSR-VTT" not in PAPER_SETTINGS and PAPER_SETTINGS.get("MSR-VTT") is None


def test_paper_settings_cannot_be_changed() -> None:
    with pytest.raises(TypeError):
        PAPER_SETTINGS["msrvtt"] = PAPER_SETTINGS["didemo"]  # type: ignore[index]


@pytest.mark.parametrize("name", ["lr", "head_lr_scale", "backbone_lr_scale", "weight_decay"])
def test_defaults_of_param_groups_are_the_papers(name: str) -> None:
    default = inspect.signature(param_groups).parameters[name].default
    assert getattr(TrainingSettings(frames=12, words=32), name) == default
