"""The trainer of sentence-transformers, with the paper's optimiser."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformerTrainer
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback

from examples.train.batches import DistinctVideos
from examples.train.objective import Objective
from examples.train.processes import on_all
from examples.train.settings import RunSettings
from muse_adapter import param_groups

BETAS, EPS = (0.9, 0.98), 1e-6  # CLIP4Clip's and the paper's
MAX_LOGIT_SCALE = math.log(100)  # as CLIP was trained


class RetrievalTrainer(SentenceTransformerTrainer):
    """Train a model and its `Objective`, and keep both in checkpoints.

    Args:
        settings: Of the run.
        targets: The video of each caption.
        *args: Of `SentenceTransformerTrainer`.
        **kwargs: Of `SentenceTransformerTrainer`.
    """

    optimizer: Any
    lr_scheduler: Any

    def __init__(
        self, settings: RunSettings, targets: Sequence[int], *args: Any, **kwargs: Any
    ) -> None:
        self.settings = settings
        self.targets = targets
        super().__init__(*args, **kwargs)
        self.add_callback(LimitLogitScale(self.loss))

    def get_batch_sampler(self, dataset: Any, batch_size: int, **kwargs: Any) -> DistinctVideos:
        """Make the batches of the training."""
        return DistinctVideos(
            self.targets,
            batch_size=batch_size,
            processes=self.args.world_size,
            epochs=self.settings.epochs,
            seed=self.settings.seed,
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Make AdamW, with the head at its own rate."""
        if self.optimizer is None:
            settings, encoder = self.settings, self.loss.video_text.encoder
            groups = param_groups(
                self.loss,
                encoder.head,
                lr=settings.lr,
                head_lr_scale=settings.head_lr_scale,
                backbone=encoder.backbone,
                backbone_lr_scale=settings.backbone_lr_scale,
                weight_decay=settings.weight_decay,
            )
            self.optimizer = torch.optim.AdamW(groups, lr=settings.lr, betas=BETAS, eps=EPS)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> LambdaLR:
        """Make the paper's schedule."""
        if self.lr_scheduler is None:
            factor = partial(
                learning_rate_factor, steps=num_training_steps, warmup=self.settings.warmup
            )
            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _clip_grad_norm(self, model: Any) -> Tensor:
        """Clip what is trained beside the model with it: the trainer knows the model alone."""
        parameters = [*model.parameters(), *self.loss.own_parameters().values()]
        return self.accelerator.clip_grad_norm_(parameters, self.args.max_grad_norm)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random numbers, and wait for all: the file that marks a checkpoint is next."""
        on_all(lambda: super(RetrievalTrainer, self)._save_rng_state(output_dir))

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        self.loss.save(output_dir or self.args.output_dir)

    def _load_from_checkpoint(self, checkpoint_path: str, model: Any = None) -> None:
        super()._load_from_checkpoint(checkpoint_path)
        self.loss.load_own(checkpoint_path)

    def load(self, checkpoint: Path) -> None:
        """Load the model and the objective of a checkpoint."""
        self._load_from_checkpoint(str(checkpoint))


class LimitLogitScale(TrainerCallback):
    """Clip the scale of the logits after each step, as CLIP's training does."""

    def __init__(self, objective: Objective) -> None:
        self.objective = objective

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Clip it."""
        with torch.no_grad():
            self.objective.video_text.logit_scale.clamp_(max=MAX_LOGIT_SCALE)


class SaveEvery(TrainerCallback):
    """Save a checkpoint every few steps, beside those after each epoch.

    Args:
        steps: How many.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint."""
        # At the end of an epoch there is one anyway, behind the evaluation that belongs to it.
        if state.global_step % self.steps == 0 and not float(state.epoch).is_integer():
            control.should_save = True


def learning_rate_factor(step: int, steps: int, warmup: float) -> float:
    """Return the factor of the learning rate in the paper's runs.

    It rises linearly from 0; the half cosine behind it begins at step 0, not at its end.

    Args:
        step: The step, from 0.
        steps: Number of steps.
        warmup: Share of the steps in which the rate rises.
    """
    done = step / steps
    return done / warmup if done < warmup else 0.5 * (1 + math.cos(math.pi * done))


def freeze_unused(objective: Objective, features: list[dict[str, Any]]) -> list[str]:
    """Freeze the parameters that the loss does not depend on, which DDP would wait for.

    SigLIP's own pooling of patches is such a part: the head replaces it.

    Args:
        objective: The loss.
        features: Of a text and a video.

    Returns:
        The names of what was frozen.
    """
    named = [(name, p) for name, p in objective.named_parameters() if p.requires_grad]
    loss = objective(features)
    gradients = torch.autograd.grad(loss, [p for _, p in named], allow_unused=True)
    unused = [
        (name, p) for (name, p), gradient in zip(named, gradients, strict=True) if gradient is None
    ]
    for _, parameter in unused:
        parameter.requires_grad_(False)
    return [name for name, _ in unused]
