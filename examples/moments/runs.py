"""One run: train a method, evaluate it, keep its result as JSON."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.moments.evaluate import evaluate
from examples.moments.features import Features
from examples.moments.material import Material
from examples.moments.models import MomentModel
from examples.moments.settings import RunSettings
from examples.moments.train import Trained, train
from examples.moments.untrained import max_over_frames, sliding_windows
from examples.quickstart.files import read_json, write_json
from examples.quickstart.settings import fingerprint

UNTRAINED: dict[str, Callable[[Features], Tensor]] = {
    "max_frames": max_over_frames,
    "windows": sliding_windows,
}


def measure(material: Material, split: str, score: Callable[[Features], Tensor]) -> dict[str, Any]:
    """Evaluate a method on a split."""
    features = material.features[split]
    with torch.inference_mode():
        scores = score(features)
    return evaluate(scores, features.others, material.videos[split])


def run(
    settings: RunSettings, material: Material, folder: Path, *, progress: bool = True
) -> tuple[Trained, dict[str, Any]]:
    """Train (or take up the checkpoint), evaluate on validation and test, write `result.json`.

    Returns:
        The trained model; and the result: what `evaluate` returns for both splits, with settings,
        number of parameters, seconds of training and the curves.
    """
    place = run_folder(folder, settings, material)

    def validate(model: MomentModel) -> dict[str, Any]:
        return measure(material, "validation", model.score)

    trained = train(
        settings, material.features["train"], validate, place / "checkpoint.pt", progress=progress
    )
    result = {
        "method": settings.method,
        "seed": settings.seed,
        "lr": settings.lr,
        "test": measure(material, "test", trained.model.score),
        "validation": trained.validation[-1],
        "parameters": sum(parameter.numel() for parameter in trained.model.parameters()),
        "train_seconds": round(trained.seconds, 1),
        "settings": asdict(settings),
        "curve": trained.validation,
        "losses": trained.losses,
    }
    write_json(place / "result.json", result)
    return trained, result


def finished(settings: RunSettings, material: Material, folder: Path) -> dict[str, Any] | None:
    """Read the result of a run that was already finished; None where it was not."""
    path = run_folder(folder, settings, material) / "result.json"
    return read_json(path) if path.is_file() else None


def run_folder(folder: Path, settings: RunSettings, material: Material) -> Path:
    """Return the folder of the checkpoint and the result of a run."""
    digest = fingerprint([asdict(settings), material.fingerprint])
    return folder / "runs" / f"{settings.method}-seed{settings.seed}-{digest}"
