"""What the tests of the quickstart share: tiny settings, its command line, an interrupt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from examples.quickstart import __main__ as command
from examples.quickstart import train
from examples.quickstart.captions import Clip
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split

TINY = Settings(width=16, depth=2, text_layers=1, vision_layers=1, size=16, num_frames=4,
                steps=6, batch_size=8)  # fmt: skip
SIZES = {"train": 20, "validation": 4, "test": 8}
OWN = ["--quiet", "--steps", "3", "--size", "16", "--num-frames", "3"]


def run_command(*arguments: str | Path | int) -> int:
    """The exit status of a command line."""
    return command.main([str(argument) for argument in arguments])


def interrupt_in_step(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let the training step of this number, counted over all runs, be interrupted."""
    original, count = train.train_step, 0

    def step(*arguments: object) -> float:
        nonlocal count
        count += 1
        if count == number:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(train, "train_step", step)


def split_of(*clips: tuple[str, str, str | None]) -> Split:
    """A split without pictures from (id, video, reversal)."""
    listed = [Clip(id, Path(video), f"caption of {id}", reversal) for id, video, reversal in clips]
    videos = list(dict.fromkeys(clip.path for clip in listed))
    return Split(
        listed,
        torch.tensor([videos.index(clip.path) for clip in listed]),
        torch.zeros(len(videos)),
        torch.zeros(len(videos)),
    )
