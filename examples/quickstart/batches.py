"""What a training step works on, and in which order."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from examples.quickstart.data import Part
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
    """

    ids: Tensor
    part: Part
    video: Tensor
    caption: Tensor

    @classmethod
    def of(cls, part: Part, tokenizer: Tokenizer) -> TrainingSet:
        """The training set of a part."""
        captions = captions_of(part)
        return cls(
            ids=tokenizer(captions),
            part=part,
            video=_numbered([clip.path for clip in part.clips]),
            caption=_numbered(captions),
        )


def _numbered(values: Sequence[Hashable]) -> Tensor:
    number = {value: i for i, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([number[value] for value in values])


def batch_of(step: int, clips: int, settings: Settings) -> Tensor:
    """Indices of the clips of a step: each epoch is a new order, drawn from seed and epoch alone.

    An incomplete last batch of an epoch is left out.
    """
    size = min(settings.batch_size, clips)
    epoch, position = divmod(step, clips // size)
    generator = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
    return torch.randperm(clips, generator=generator)[position * size : (position + 1) * size]
