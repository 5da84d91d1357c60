"""Everything a run depends on, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from muse_adapter import PAPER_SETTINGS, TrainingSettings

OBJECTIVES = ("contrastive", "sigmoid", "eercf", "video-colbert")
CACHE_DTYPES = ("float32", "float16", "bfloat16")

# Where the paper has no settings of its own: those of CLIP4Clip's published commands.
CLIP4CLIP = TrainingSettings(frames=12, words=32)
CLIP4CLIP_BATCH_SIZE, CLIP4CLIP_EPOCHS = 128, 5


def preset(data_set: str) -> TrainingSettings:
    """Return the paper's settings of a data set, or CLIP4Clip's."""
    name = "msrvtt" if data_set == "msrvtt-7k" else data_set
    return PAPER_SETTINGS.get(name, CLIP4CLIP)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the result of a run depends on.

    Attributes:
        data_set: Name of the data set, see `read_annotations`.
        annotations: Its folder of annotations, or a CSV.
        videos: Its folder of videos.
        model: Folder or name of a Hugging Face CLIP, SigLIP or SigLIP 2.
        objective: One of `OBJECTIVES`.
        frames: Frames of a video.
        fps: Frames per second to sample from.
        words: Tokens of a caption.
        batch_size: Pairs in a step, over all processes.
        epochs: Passes over the captions.
        lr: Learning rate of what is neither head nor model.
        head_lr_scale: Factor on `lr` for the head.
        backbone_lr_scale: Factor on `lr` for the model beside the head.
        weight_decay: Decoupled weight decay.
        warmup: Share of the steps in which the learning rate rises.
        depth: Mixer layers of the head.
        dropout: Last rate of the head's ramp of dropout.
        freeze: Whether the model beside the head is frozen.
        validate: Whether videos are set aside to choose the best epoch. Otherwise all are trained
            on and the last epoch is tested.
        held_out: Share of the training videos set aside where the data set has no validation part.
        skip_missing: Whether videos without a file are left out.
        cache_dtype: One of `CACHE_DTYPES`, in which the tokens of the frozen model are kept; None:
            the model runs in every step.
        seed: Of the batches, the dropout and the videos set aside.

    Raises:
        ValueError: A value is none that a run can have.
    """

    data_set: str
    annotations: str
    videos: str
    model: str
    objective: str = "contrastive"
    frames: int
    fps: float | None = 1.0
    words: int
    batch_size: int
    epochs: int
    lr: float
    head_lr_scale: float
    backbone_lr_scale: float
    weight_decay: float
    warmup: float
    depth: int
    dropout: float = 0.1
    freeze: bool = False
    validate: bool = True
    held_out: float = 0.05
    skip_missing: bool = False
    cache_dtype: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("objective", self.objective, OBJECTIVES)
        check_at_least(1, frames=self.frames, words=self.words, epochs=self.epochs)
        check_at_least(1, depth=self.depth)
        check_at_least(2, batch_size=self.batch_size)  # one pair has no negatives
        check_at_least(0, head_lr_scale=self.head_lr_scale, weight_decay=self.weight_decay)
        check_at_least(0, backbone_lr_scale=self.backbone_lr_scale)
        if not 0 <= self.seed < 2**32:  # as NumPy wants it
            raise ValueError(f"seed must be in 0..{2**32 - 1}, got {self.seed}")
        for name in ("lr", "fps"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive, got {value}")
        for name in ("dropout", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must be between 0 and 1, got {self.held_out}")
        if self.cache_dtype is not None:
            check_choice("cache_dtype", self.cache_dtype, CACHE_DTYPES)
            if not self.freeze:
                raise ValueError("tokens can be kept of a frozen model only: add --freeze")

    @classmethod
    def of(cls, data_set: str, **fields: Any) -> RunSettings:
        """Make the settings of a data set: its preset, and what differs (None: the preset's)."""
        found = preset(data_set)
        defaults = {
            "frames": found.frames,
            "words": found.words,
            "batch_size": found.batch_size or CLIP4CLIP_BATCH_SIZE,
            "epochs": found.epochs or CLIP4CLIP_EPOCHS,
            "lr": found.lr,
            "head_lr_scale": found.head_lr_scale,
            "backbone_lr_scale": found.backbone_lr_scale,
            "weight_decay": found.weight_decay,
            "warmup": found.warmup,
            "depth": found.depth,
        }
        given = {name: value for name, value in fields.items() if value is not None}
        return cls(data_set=data_set, **{**defaults, **given})


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How a run is carried out.

    Attributes:
        output: Folder that everything is kept in.
        processes: Number of processes.
        workers: Processes that read videos, for each process.
        save_steps: Steps between checkpoints, beside those after each epoch; None: none.
        grad_checkpointing: Whether activations are recomputed in the backward pass.
        report_to: Where the trainer reports to, such as "tensorboard".
        eval_batch_size: Videos at once in an evaluation.
        skip_unreadable: Whether videos that cannot be read are left out; otherwise they are an
            error.
        cache_tokens: Folder of the tokens of the frozen model; runs may share it. Needs the
            `cache_dtype` of the settings.
        progress: Whether to show progress bars.

    Raises:
        ValueError: A number is out of range.
    """

    output: Path
    processes: int = 1
    workers: int = 0
    save_steps: int | None = None
    grad_checkpointing: bool = False
    report_to: list[str] = field(default_factory=list)
    eval_batch_size: int = 16
    skip_unreadable: bool = False
    cache_tokens: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        check_at_least(0, workers=self.workers)
        check_at_least(1, processes=self.processes, eval_batch_size=self.eval_batch_size)
        if self.save_steps is not None:
            check_at_least(1, save_steps=self.save_steps)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Check that a setting is one of some values.

    Raises:
        ValueError: It is none.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value}")


def check_at_least(minimum: int, **values: float) -> None:
    """Check that settings are at least `minimum`, and finite.

    Raises:
        ValueError: One is not; the message names it.
    """
    for name, value in values.items():
        if not minimum <= value < math.inf:
            raise ValueError(f"{name} must be at least {minimum}, got {value}")
