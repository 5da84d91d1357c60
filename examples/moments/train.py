"""Training on frozen features: batches of videos with all their sentences, checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from examples.moments.features import Features
from examples.moments.fused import FusedModel
from examples.moments.models import ClipModel, MomentModel, PublishedModel
from examples.moments.muse_windows import MuseWindows
from examples.moments.settings import RunSettings
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.schedule import warmup_cosine
from muse_adapter import param_groups

CHECKPOINT_EVERY = 50
VALIDATE_EVERY = 110  # steps; five epochs of the default run

_NAMES = "settings", "model", "optimizer", "random", "losses", "validation", "seconds"


@dataclass
class Trained:
    """A run, finished or under way.

    Attributes:
        model: The model after the last step.
        losses: Loss of each step.
        validation: What `evaluate` measured along the way, with the step.
        seconds: Time spent in training steps, interrupts not counted.
    """

    model: MomentModel
    losses: list[float] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


def train(
    settings: RunSettings,
    training: Features,
    validate: Callable[[MomentModel], dict[str, Any]],
    path: Path,
    *,
    progress: bool = True,
) -> Trained:
    """Train one model, or go on where an interrupted run stopped.

    Args:
        settings: Settings of the run.
        training: Features of the training videos.
        validate: Measures a model; what it returns is kept and changes nothing in the training.
        path: File of the checkpoint, written every `CHECKPOINT_EVERY` steps and at the end.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: The checkpoint cannot be used, or there are fewer videos than a batch has.
        FloatingPointError: The loss is not finite.
    """
    if len(training.frames) < settings.batch_videos:
        raise ValueError(
            f"there are {len(training.frames)} training videos, fewer than the "
            f"{settings.batch_videos} of a batch"
        )
    run = Trained(build_model(settings, training))
    optimizer = torch.optim.AdamW(
        param_groups(run.model, run.model.model, lr=settings.lr, head_lr_scale=1.0,
                     weight_decay=settings.weight_decay),
        betas=(0.9, 0.98),
        fused=True,  # of hundreds of small tensors: one by one they take a tenth of a step
    )  # fmt: skip
    steps = settings.epochs * (len(training.frames) // settings.batch_videos)
    if path.is_file():
        _load(path, run, optimizer)
    bar = tqdm(
        total=steps,
        initial=len(run.losses),
        desc=f"train {settings.method}, seed {settings.seed}",
        unit="step",
        disable=not progress,
    )
    with bar:
        for step in range(len(run.losses), steps):
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = settings.lr * warmup_cosine(step, steps, settings.warmup)
            run.model.train()
            batch = training.select(batch_of(step, settings, len(training.frames)))
            loss = run.model.loss(batch)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(run.model.parameters(), settings.max_grad_norm)
            optimizer.step()
            run.losses.append(loss.item())
            run.seconds += time.perf_counter() - began
            if not math.isfinite(run.losses[-1]):
                raise FloatingPointError(
                    f"the loss is {run.losses[-1]} in step {step}; try a lower learning rate"
                )
            bar.update()
            bar.set_postfix(loss=f"{run.losses[-1]:.3f}", refresh=False)
            done = step + 1
            if done % VALIDATE_EVERY == 0 or done == steps:
                run.model.eval()
                run.validation.append({"step": done, **validate(run.model)})
            if done % CHECKPOINT_EVERY == 0 or done == steps:
                _save(path, run, optimizer, settings)
    run.model.eval()
    return run


def build_model(settings: RunSettings, training: Features) -> MomentModel:
    """Build the model of a run, drawn from its seed."""
    torch.manual_seed(settings.seed)
    kinds: dict[str, Callable[[RunSettings, int], MomentModel]] = {
        "fused": FusedModel,
        "muse": MuseWindows,
        "published": PublishedModel,
    }
    return kinds.get(settings.method, ClipModel)(settings, training.frames.shape[2])


def batch_of(step: int, settings: RunSettings, videos: int) -> Tensor:
    """Draw the videos of a step: twins, which stand side by side, share a batch.

    Each epoch is a new order, from seed and epoch alone; an incomplete last batch is left out.

    Args:
        step: The step, from 0.
        settings: Settings of the run.
        videos: Number of training videos.

    Returns:
        int64 (batch_videos,).
    """
    pairs, size = videos // 2, settings.batch_videos // 2
    epoch, position = divmod(step, pairs // size)
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
    chosen = torch.randperm(pairs, generator=generator)[position * size : (position + 1) * size]
    return torch.stack([2 * chosen, 2 * chosen + 1], dim=1).flatten()


def _save(
    path: Path, run: Trained, optimizer: torch.optim.Optimizer, settings: RunSettings
) -> None:
    """Write everything that the steps to come depend on."""
    content = {
        "settings": asdict(settings),
        "model": run.model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random": torch.get_rng_state(),
        "losses": run.losses,
        "validation": run.validation,
        "seconds": run.seconds,
    }
    write_tensors(path, content)


def read_model(path: Path, model: MomentModel) -> MomentModel:
    """Load the weights of a checkpoint.

    Raises:
        ValueError: It is damaged, or of another model.
    """
    _fill(path, model, read_tensors(path, _NAMES)["model"])
    return model


def _load(path: Path, run: Trained, optimizer: torch.optim.Optimizer) -> None:
    content = read_tensors(path, _NAMES)
    _fill(path, run.model, content["model"])
    _fill(path, optimizer, content["optimizer"])
    torch.set_rng_state(content["random"])
    run.losses[:], run.validation[:] = content["losses"], content["validation"]
    run.seconds = content["seconds"]


def _fill(path: Path, target: nn.Module | torch.optim.Optimizer, state: dict[str, Any]) -> None:
    try:
        target.load_state_dict(state)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} is of another model, delete it and start again") from error
