"""What a training step works on, and in which order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.quickstart.data import Clip, Part
from examples.quickstart.evaluate import captions_of
from examples.quickstart.model import Tokenizer
from examples.quickstart.settings import Settings


@dataclass(frozen=True)
class TrainingSet:
    """What a step draws its batch from; row i of everything is caption i.

    Attributes:
        ids: token ids, int64 (n, L).
        part: frames and masks.
        video: number of the video, int64 (n,); captions of one video share it.
        caption: number of the caption, int64 (n,); equal captions share it.
        groups: rows that share a batch. A clip and its time reversal do: against a batch of other
            scenes a caption is found by its objects alone, and how they move is hardly learnt.
    """

    ids: Tensor
    part: Part
    video: Tensor
    caption: Tensor
    groups: list[list[int]]

    @classmethod
    def of(cls, part: Part, tokenizer: Tokenizer) -> TrainingSet:
        """The training set of a part."""
        captions = captions_of(part)
        return cls(
            ids=tokenizer(captions),
            part=part,
            video=_numbered([clip.path for clip in part.clips]),
            caption=_numbered(captions),
            groups=_groups(part.clips),
        )


def _numbered(values: Sequence[Hashable]) -> Tensor:
    number = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([number[value] for value in values])


def _groups(clips: Sequence[Clip]) -> list[list[int]]:
    """The rows of clips that stay together: a clip with its time reversal, others alone."""
    row = {clip.id: i for i, clip in enumerate(clips)}
    groups: list[list[int]] = []
    placed: set[int] = set()
    for i, clip in enumerate(clips):
        if i not in placed:
            reversal = i if clip.reversal is None else row.get(clip.reversal, i)
            groups.append([i] if reversal == i or reversal in placed else [i, reversal])
            placed.update(groups[-1])
    return groups


def batch_of(step: int, groups: Sequence[Sequence[int]], settings: Settings) -> Tensor:
    """Rows of the clips of a step: each epoch is a new order, drawn from seed and epoch alone.

    Args:
        step: from 0.
        groups: rows that come one after the other in every epoch.
        settings: of the run; its batch size and seed count.

    Returns:
        int64 (batch,). An incomplete last batch of an epoch is left out.
    """
    clips = sum(map(len, groups))
    size = min(settings.batch_size, clips)
    epoch, position = divmod(step, clips // size)
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
    order = torch.randperm(len(groups), generator=generator).tolist()
    rows = torch.tensor([row for group in order for row in groups[group]])
    return rows[position * size : (position + 1) * size]
