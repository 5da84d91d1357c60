"""Training: one objective, warm-up and cosine, resumed from checkpoints."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from examples.quickstart.batches import TrainingSet, batch_of
from examples.quickstart.checkpoint import Trained, load_checkpoint, save_checkpoint
from examples.quickstart.evaluate import evaluate
from examples.quickstart.model import QuickstartModel, build_model, build_tokenizer
from examples.quickstart.objectives import training_loss
from examples.quickstart.pace import Pace, expected_seconds
from examples.quickstart.schedule import warmup_cosine
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split
from muse_adapter import param_groups

CHECKPOINT_EVERY = 50
VALIDATE_EVERY = 100
MAX_LOGIT_SCALE = math.log(100)


def build_optimizer(model: QuickstartModel, settings: Settings) -> torch.optim.Optimizer:
    """Build an AdamW in which the head learns at a multiple of the rate of the image tower.

    What is passed as `backbone` learns at a fraction of it: the text tower, or with
    `settings.train_backbone` both pretrained towers at the paper's 1e-3.
    """
    slow: nn.Module = model.text
    scale = settings.text_lr_scale
    if settings.backbone is not None:
        # Its towers and projections: the logit scale, a parameter of CLIP itself, is not slowed.
        slow, scale = nn.ModuleList(model.encoder.backbone.children()), 1e-3
    groups = param_groups(
        model,
        model.encoder.head,
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


@contextlib.contextmanager
def kept_threads() -> Iterator[None]:
    """Give torch back the number of threads that it had before."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def train(
    settings: Settings,
    training: Split,
    validation: Split,
    checkpoint: Path,
    *,
    device: str = "cpu",
    progress: bool = True,
) -> Trained:
    """Train one model, or go on where an interrupted run of the same settings stopped.

    Args:
        settings: Settings of the run.
        training: The training clips.
        validation: Clips on which R@1 is followed; they change nothing in the training.
        checkpoint: File of the checkpoint, written every `CHECKPOINT_EVERY` steps and at the end.
        device: Where to train.
        progress: Whether to show a progress bar.

    Raises:
        ValueError: There are fewer than two training clips, or the checkpoint cannot be used.
    """
    if len(training.clips) < 2:
        raise ValueError(f"training needs at least 2 clips, got {len(training.clips)}")
    tokenizer = build_tokenizer(settings, training.captions)
    model = build_model(settings, tokenizer).to(device)
    optimizer = build_optimizer(model, settings)
    if not settings.learns:
        model.eval()
        return Trained(model, tokenizer, losses=[], validation=[], seconds=0.0)
    clips = TrainingSet.of(training, tokenizer)
    pace = Pace(expected_seconds(settings, device))
    run = Trained(model, tokenizer, losses=[], validation=[], seconds=0.0)
    if checkpoint.is_file():
        load_checkpoint(checkpoint, run, optimizer, torch.device(device))

    bar = tqdm(
        total=settings.steps,
        initial=len(run.losses),
        desc=f"train {settings.head}, {settings.objective}, seed {settings.seed}",
        unit="step",
        disable=not progress,
    )
    with bar, kept_threads():
        for step in range(len(run.losses), settings.steps):
            began = time.perf_counter()
            loss = train_step(model, optimizer, settings, step, clips)
            seconds = time.perf_counter() - began
            run.seconds += seconds
            if (warning := pace.step(seconds)) is not None:
                tqdm.write(f"warning: {warning}", file=sys.stderr)
            run.losses.append(loss)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}", refresh=False)
            done = step + 1
            if done % VALIDATE_EVERY == 0 or done == settings.steps:
                result = evaluate(model, tokenizer, validation)
                run.validation.append((done, result["t2v"]["R@1"]))
            if done % CHECKPOINT_EVERY == 0 or done == settings.steps:
                save_checkpoint(checkpoint, run, optimizer, settings, torch.device(device))
    model.eval()
    return run


def train_step(
    model: QuickstartModel,
    optimizer: torch.optim.Optimizer,
    settings: Settings,
    step: int,
    clips: TrainingSet,
) -> float:
    """Train on the batch of a step.

    Returns:
        The loss before the step.

    Raises:
        FloatingPointError: The loss is not finite.
    """
    device = model.logit_scale.device
    rows = batch_of(step, clips.groups, settings)
    video = clips.split.video[rows]
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * warmup_cosine(step, settings.steps, settings.warmup)
    model.train()
    optimizer.zero_grad(set_to_none=True)
    frames, mask = clips.split.frames[video].to(device), clips.split.mask[video].to(device)
    caption = clips.caption[rows].to(device)
    loss = training_loss(model, clips.ids[rows].to(device), frames, mask, video.to(device), caption)
    value = loss.item()
    if not math.isfinite(value):
        raise FloatingPointError(f"the loss is {value} in step {step}; try a lower learning rate")
    loss.backward()
    # The order decides the last digit of the norm: this one is that of the README's figures.
    ordered = dict.fromkeys([model.logit_scale, *model.text.parameters(), *model.parameters()])
    torch.nn.utils.clip_grad_norm_(list(ordered), settings.max_grad_norm)
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
    return value
