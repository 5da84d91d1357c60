"""One run: train a head, evaluate it on the test split, keep its result as JSON."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from examples.quickstart.batches import TrainingSet
from examples.quickstart.checkpoint import Trained
from examples.quickstart.evaluate import evaluate, evaluate_reranked
from examples.quickstart.files import ensure_folder, read_json, write_json
from examples.quickstart.material import Material
from examples.quickstart.model import build_model, build_tokenizer
from examples.quickstart.settings import Settings
from examples.quickstart.train import build_optimizer, train, train_step
from muse_adapter.ops import backend_for


def scan_backend(device: str) -> str:
    """Name the backend that the scan takes on a device."""
    return backend_for(torch.device(device))


def run_folder(folder: Path, settings: Settings, material: Material) -> Path:
    """Return the folder of the checkpoint and the result of a run."""
    return folder / "runs" / settings.run_name(material.fingerprint)


def run(
    settings: Settings,
    material: Material,
    folder: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> tuple[Trained, dict[str, Any]]:
    """Train (or take up the checkpoint), evaluate on the test split, write `result.json`.

    Returns:
        The trained model and the result: what `evaluate` returns, with settings, number of
        parameters, seconds of training and the curves; of EERCF's objective also what
        `evaluate_reranked` returns, as "reranked".
    """
    place = run_folder(folder, settings, material)
    trained = train(
        settings,
        material.splits["train"],
        material.splits["validation"],
        place / "checkpoint.pt",
        device=device,
        progress=progress,
    )
    test = material.splits["test"]
    result = {
        "head": settings.head,
        "objective": settings.objective,
        "seed": settings.seed,
        **evaluate(trained.model, trained.tokenizer, test),
        "parameters": {
            "head": _count(trained.model.encoder.head),
            "all": _count(trained.model),
        },
        "train_seconds": round(trained.seconds, 1),
        "scan_backend": scan_backend(device),
        "settings": asdict(settings),
        "losses": trained.losses,
        "validation_r1": [list(point) for point in trained.validation],
    }
    if settings.objective == "eercf":
        result["reranked"] = evaluate_reranked(trained.model, trained.tokenizer, test)
    ensure_folder(place)  # training that has nothing to do leaves none
    write_json(place / "result.json", result)
    return trained, result


def finished(settings: Settings, material: Material, folder: Path) -> dict[str, Any] | None:
    """Read the result of a run that was already finished; None where it was not."""
    path = run_folder(folder, settings, material) / "result.json"
    return read_json(path) if path.is_file() else None


def seconds_per_step(settings: Settings, material: Material, device: str, steps: int = 3) -> float:
    """Time a training step of a throwaway model, the first step not counted."""
    training = material.splits["train"]
    tokenizer = build_tokenizer(settings, training.captions)
    model = build_model(settings, tokenizer).to(device)
    optimizer = build_optimizer(model, settings)
    clips = TrainingSet.of(training, tokenizer)
    train_step(model, optimizer, settings, 0, clips)
    began = time.perf_counter()
    for step in range(1, 1 + steps):
        train_step(model, optimizer, settings, step, clips)
    return (time.perf_counter() - began) / steps


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
