"""Training: symmetric InfoNCE, warm-up and cosine, checkpoints that resume to the same bits."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from examples.quickstart.batches import TrainingSet, batch_of
from examples.quickstart.data import Part
from examples.quickstart.evaluate import captions_of, evaluate
from examples.quickstart.files import read_tensors, write_tensors
from examples.quickstart.model import (
    MAX_LOGIT_SCALE,
    DualEncoder,
    Tokenizer,
    build_model,
    build_tokenizer,
)
from examples.quickstart.random_state import random_state, restore_random_state
from examples.quickstart.settings import Settings
from muse_adapter import param_groups

CHECKPOINT_EVERY = 50
VALIDATE_EVERY = 100


@dataclass
class Trained:
    """A finished run.

    Attributes:
        model: the model after the last step.
        tokenizer: of its text tower.
        losses: training loss of each step.
        validation: (step, R@1 text to video in percent) along the way.
        seconds: time spent in training steps, interrupts not counted.
    """

    model: DualEncoder
    tokenizer: Tokenizer
    losses: list[float]
    validation: list[tuple[int, float]]
    seconds: float


def learning_rate(step: int, settings: Settings) -> float:
    """Factor of the learning rate in step `step` (from 0): linear warm-up, then a half cosine."""
    warm = max(1, round(settings.warmup * settings.steps))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, settings.steps - warm)))


def contrastive_loss(logits: Tensor, equal: Tensor) -> Tensor:
    """Symmetric InfoNCE: the mean of the cross entropies of rows and columns.

    Args:
        logits: (B texts, B videos); text i belongs to video i.
        equal: bool (B, B), True where text and video belong together too, as when a video has
            several captions in the batch. Those are no negatives, so they are left out.
    """
    target = torch.arange(len(logits), device=logits.device)
    own = torch.eye(len(logits), dtype=torch.bool, device=logits.device)
    logits = logits.masked_fill(equal & ~own, -math.inf)
    return 0.5 * (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target))


def build_optimizer(model: DualEncoder, settings: Settings) -> torch.optim.Optimizer:
    """AdamW in which the head learns at a multiple of the rate of the image tower.

    What is passed as `backbone` learns at a fraction of it: the text tower, or with
    `settings.train_backbone` both pretrained towers at the paper's 1e-3.
    """
    slow: nn.Module = model.text
    scale = settings.text_lr_scale
    if settings.backbone is not None:
        slow, scale = nn.ModuleList([model.text, model.video.backbone]), 1e-3
    groups = param_groups(
        model,
        model.video.head,
        lr=settings.lr,
        head_lr_scale=settings.head_lr_scale,
        backbone=slow,
        backbone_lr_scale=scale,
        weight_decay=settings.weight_decay,
    )
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    for group in optimizer.param_groups:
        group["peak_lr"] = group["lr"]
    return optimizer


def train(
    settings: Settings,
    part: Part,
    validation: Part,
    checkpoint: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> Trained:
    """Train one model, or go on where an interrupted run of the same settings stopped.

    Args:
        settings: of the run.
        part: the training clips.
        validation: clips on which R@1 is followed; they change nothing in the training.
        checkpoint: file of the checkpoint, written every `CHECKPOINT_EVERY` steps and at the end.
        device: where to train.
        progress: whether to show a progress bar.

    Raises:
        ValueError: if there are fewer than two training clips.
    """
    if len(part.clips) < 2:
        raise ValueError(f"training needs at least 2 clips, got {len(part.clips)}")
    tokenizer = build_tokenizer(settings, captions_of(part))
    model = build_model(settings, tokenizer).to(device)
    optimizer = build_optimizer(model, settings)
    clips = TrainingSet.of(part, tokenizer)
    run = Trained(model, tokenizer, losses=[], validation=[], seconds=0.0)
    if checkpoint.is_file():
        _restore(checkpoint, run, optimizer, torch.device(device))

    bar = tqdm(
        total=settings.steps,
        initial=len(run.losses),
        desc=f"train {settings.head}, seed {settings.seed}",
        unit="step",
        disable=not progress,
    )
    with bar:
        for step in range(len(run.losses), settings.steps):
            began = time.perf_counter()
            loss = train_step(run.model, optimizer, settings, step, clips)
            run.seconds += time.perf_counter() - began
            run.losses.append(loss)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            done = step + 1
            if done % VALIDATE_EVERY == 0 or done == settings.steps:
                result = evaluate(model, tokenizer, validation)
                run.validation.append((done, result["t2v"]["R@1"]))
            if done % CHECKPOINT_EVERY == 0 or done == settings.steps:
                _save(checkpoint, run, optimizer, settings, torch.device(device))
    model.eval()
    return run


def train_step(
    model: DualEncoder,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    step: int,
    clips: TrainingSet,
) -> float:
    """One step on the batch of `step`.

    Returns:
        The loss before the step.

    Raises:
        FloatingPointError: if the loss is not finite.
    """
    device = model.logit_scale.device
    batch = batch_of(step, clips.groups, settings)
    inputs = (x[batch].to(device) for x in (clips.ids, clips.part.frames, clips.part.mask))
    video, caption = clips.video[batch], clips.caption[batch]
    equal = (video[:, None] == video) | (caption[:, None] == caption)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * learning_rate(step, settings)
    model.train()
    optimizer.zero_grad(set_to_none=True)
    loss = contrastive_loss(model(*inputs), equal.to(device))
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} in step {step}; try a lower learning rate")
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), settings.max_grad_norm)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return value


def _save(
    path: Path,
    run: Trained,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    device: torch.device,
) -> None:
    content = {
        "settings": asdict(settings),
        "tokenizer": run.tokenizer.state(),
        "model": run.model.own_state(),
        "optimizer": optimizer.state_dict(),
        "random": random_state(device),
        "losses": run.losses,
        "validation": run.validation,
        "seconds": run.seconds,
    }
    write_tensors(path, content)


def _restore(
    path: Path, run: Trained, optimizer: torch.optim.Optimizer, device: torch.device
) -> None:
    content = read_tensors(path)
    run.model.load_own_state(content["model"])
    optimizer.load_state_dict(content["optimizer"])
    restore_random_state(content["random"], device)
    run.losses[:] = content["losses"]
    run.validation[:] = content["validation"]
    run.seconds = content["seconds"]
