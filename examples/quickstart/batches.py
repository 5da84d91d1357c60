"""What a training step works on, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.quickstart.captions import Clip
from examples.quickstart.model import Tokenizer
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split


@dataclass(frozen=True)
class TrainingSet:
    """What a step draws its batch from; row i of everything is caption i.

    Attributes:
        ids: Token ids, int64 (n, L).
        split: Clips, frames and masks.
        caption: Number of the caption, int64 (n,); equal captions share it.
        groups: Rows that share a batch. A clip and its time reversal do: against a batch of other
            scenes a caption is found by its objects alone, and how they move is hardly learnt.
    """

    ids: Tensor
    split: Split
    caption: Tensor
    groups: list[list[int]]

    @classmethod
    def of(cls, split: Split, tokenizer: Tokenizer) -> TrainingSet:
        """Make the training set of a split."""
        captions = split.captions
        number = {caption: i for i, caption in enumerate(dict.fromkeys(captions))}
        return cls(
            ids=tokenizer(captions),
            split=split,
            caption=torch.tensor([number[caption] for caption in captions]),
            groups=_groups(split.clips),
        )


def _groups(clips: Sequence[Clip]) -> list[list[int]]:
    """Group the rows that stay together: a clip with its time reversal, others alone."""
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
    """Draw the rows of a step: each epoch is a new order, from seed and epoch alone.

    Args:
        step: The step, from 0.
        groups: Rows that come one after the other in every epoch.
        settings: Settings of the run; its batch size and seed count.

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
