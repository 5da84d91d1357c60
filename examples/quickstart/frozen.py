"""What a frozen backbone makes of the clips, computed once and read in every step."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from examples.quickstart.material import Material
from examples.quickstart.model import QuickstartModel
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split
from muse_adapter.data import CachedTokens, cache_tokens


class TokenRows:
    """Tokens in place of frames: rows are read from the disk when they are asked for.

    Args:
        cached: The tokens of n videos.
    """

    def __init__(self, cached: CachedTokens) -> None:
        self.cached = cached

    def __len__(self) -> int:
        return len(self.cached)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """Read rows: (len(rows), T, N, C)."""
        numbers = range(len(self))[rows] if isinstance(rows, slice) else rows.tolist()
        return torch.stack([self.cached[number][0] for number in numbers])


class _Frames:
    """The videos of a split as the backbone takes them."""

    def __init__(self, split: Split, model: QuickstartModel) -> None:
        self.split, self.model = split, model

    def __len__(self) -> int:
        return len(self.split.frames)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        return self.model.prepare(self.split.frames[number].to(self.model.mean.device)), (
            self.split.mask[number]
        )


def encode_once(
    settings: Settings, material: Material, model: QuickstartModel, folder: Path
) -> Material:
    """Run the frozen backbone on every clip, or take up what of it is on the disk.

    Args:
        settings: Settings of the run; `backbone` is frozen.
        material: The clips.
        model: Any model of these settings: they share the backbone.
        folder: Where the tokens are kept, as float16.

    Returns:
        The same clips, with tokens in place of frames.
    """
    print("the backbone is frozen: every clip is encoded once, and kept on the disk ...")
    place = folder / "tokens" / settings.backbone_name(material.fingerprint)
    splits = {
        name: replace(
            split,
            frames=cast(
                Tensor,
                TokenRows(
                    cache_tokens(
                        model.encoder, _Frames(split, model), place / name, dtype=torch.float16
                    )
                ),
            ),
        )
        for name, split in material.splits.items()
    }
    return replace(material, splits=splits)
