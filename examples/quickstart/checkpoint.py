"""Checkpoints of a training run, from which it goes on to the same bits."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.model import QuickstartModel, Tokenizer
from examples.quickstart.settings import Settings

_NAMES = (
    "settings", "tokenizer", "model", "optimizer", "random", "losses", "validation", "seconds",
)  # fmt: skip


@dataclass
class Trained:
    """A run, finished or under way.

    Attributes:
        model: The model after the last step.
        tokenizer: The tokenizer of its text tower.
        losses: Training loss of each step.
        validation: (step, R@1 text to video in percent) along the way.
        seconds: Time spent in training steps, interrupts not counted.
    """

    model: QuickstartModel
    tokenizer: Tokenizer
    losses: list[float]
    validation: list[tuple[int, float]]
    seconds: float


def save_checkpoint(
    path: Path,
    run: Trained,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    device: torch.device,
) -> None:
    """Write everything that the steps to come depend on."""
    content = {
        "settings": asdict(settings),
        "tokenizer": run.tokenizer.state(),
        "model": run.model.own_state(),
        "optimizer": optimizer.state_dict(),
        "random": _random_state(device),
        "losses": run.losses,
        "validation": run.validation,
        "seconds": run.seconds,
    }
    write_tensors(path, content)


def load_checkpoint(
    path: Path, run: Trained, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    """Load what `save_checkpoint` wrote into a run and its optimiser.

    Raises:
        ValueError: The file is damaged, or of another model.
    """
    content = read_tensors(path, _NAMES)
    try:
        run.model.load_own_state(content["model"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    optimizer.load_state_dict(content["optimizer"])
    _restore_random_state(content["random"], device)
    run.losses[:] = content["losses"]
    run.validation[:] = content["validation"]
    run.seconds = content["seconds"]


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """State of the generators that dropout draws from."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
