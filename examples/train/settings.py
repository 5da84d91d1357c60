"""Everything a run depends on, in one place."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from muse_adapter import PAPER_SETTINGS, TrainingSettings
from muse_adapter.files import write_whole

OBJECTIVES = ("contrastive", "sigmoid", "eercf", "video-colbert")

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
        seed: Of the batches, the dropout and the videos set aside.
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
    seed: int = 0

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
        progress: Whether to show progress bars.
    """

    output: Path
    processes: int = 1
    workers: int = 0
    save_steps: int | None = None
    grad_checkpointing: bool = False
    report_to: list[str] = field(default_factory=list)
    eval_batch_size: int = 16
    progress: bool = True


def check_same_run(settings: RunSettings, execution: Execution) -> None:
    """Keep the settings of a run in its folder, or check that they are the same.

    Raises:
        ValueError: The folder holds a run with other settings; the message says which.
    """
    path = execution.output / "settings.json"
    wanted = {**asdict(settings), "processes": execution.processes}
    if not path.is_file():
        execution.output.mkdir(parents=True, exist_ok=True)
        # Of several processes each writes, and reads only what is whole.
        write_whole({path: (json.dumps(wanted, indent=2) + "\n").encode()})
        return
    kept = json.loads(path.read_text())
    names = [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]
    if names:
        listed = ", ".join(f"{name} {kept.get(name)} and not {wanted.get(name)}" for name in names)
        raise ValueError(f"{execution.output} holds a run with {listed}: use another --output")
