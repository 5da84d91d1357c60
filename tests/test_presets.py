"""The papers' training settings."""

from __future__ import annotations

import inspect

import pytest
import torch

from muse_adapter.config import MuseConfig
from muse_adapter.models.mamfusion import MamFusion
from muse_adapter.presets import MAMFUSION_SETTINGS, PAPER_SETTINGS, TrainingSettings
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


# The columns of the published table, by their names in the config or in the settings.
MAMFUSION = {
    "visual_width": (3072, 1024, 1024),
    "text_width": (768, 1024, 1024),
    "max_frames": (512, 256, 1024),
    "max_words": (30, 30, 30),
    "hidden": (384, 384, 384),
    "num_clips": (32, 32, 32),
    "heads": (8, 8, 4),
    "input_dropout": (0.2, 0.2, 0.15),
    "dropout": (0.45, 0.18, 0.3),
    "weights": ((0.027, 0.045, 0.015), (0.027, 0.045, 0.015), (0.008, 0.01, 0.005)),
    "delta": (0.2, 0.2, 0.15),
    "margin": (0.2, 0.2, 0.2),
    "hard_negatives_from": (20, 20, 100),
    "batch_size": (256, 64, 64),
    "epochs": (200, 200, 400),
    "patience": (200, 200, 10),
    "lr": (4.5e-4, 4.5e-4, 3.8e-4),
    "weight_decay": (0.01, 0.01, 0.01),
    "warmup": (0.01, 0.01, 0.01),
}


@pytest.mark.parametrize("name", MAMFUSION)
def test_mamfusion_settings(name: str) -> None:
    assert list(MAMFUSION_SETTINGS) == ["tvr", "activitynet", "charades"]
    for settings, expected in zip(MAMFUSION_SETTINGS.values(), MAMFUSION[name], strict=True):
        holder = settings if hasattr(settings, name) else settings.config
        assert getattr(holder, name) == expected


def test_mamfusion_has_the_published_number_of_parameters() -> None:
    """18.37 million for TVR, less the fusion over the batch and 480 positions of clips."""
    with torch.device("meta"):
        model = MamFusion(MAMFUSION_SETTINGS["tvr"].config)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (count + 1.37e6 + 480 * 384) / 1e6 == pytest.approx(18.37, abs=0.01)
