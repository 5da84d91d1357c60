"""What it takes to read the patch tokens of one backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True)
class PatchTokens:
    """How the patch tokens of one backbone are read.

    The functions are given the backbone at each call and hold no reference to it: a copy, a
    pickled or a compiled backbone is read as well as the one that was looked at.

    Attributes:
        family: The backbone's family, for messages.
        width: Width C of the tokens.
        num_prefix_tokens: Tokens before the patches. With one or more, the first equals the
            backbone's own image embedding; 0 where the backbone has none.
        read_frames: (backbone, frames (n, 3, height, width)) -> tokens (n, N, C).
        grid_of: (backbone, (height, width) in pixels) -> patch grid (H, W).
    """

    family: str
    width: int
    num_prefix_tokens: int
    read_frames: Callable[[Any, Tensor], Tensor]
    grid_of: Callable[[Any, Grid], Grid]

    def read(self, backbone: Any, frames: Tensor) -> Tensor:
        """Reads the tokens of single frames.

        Args:
            backbone: The backbone that was found to be of this family.
            frames: (n, 3, height, width), floating point, preprocessed as the backbone wants it.

        Returns:
            Tokens (n, N, C), N = num_prefix_tokens + H*W, of the backbone's own type.

        Raises:
            ValueError: The backbone gave another number of tokens than its patch grid has.
        """
        tokens = self.read_frames(backbone, frames)
        height, width = frames.shape[-2:]
        grid = self.grid_of(backbone, (height, width))
        expected = (len(frames), self.num_prefix_tokens + grid[0] * grid[1], self.width)
        if tuple(tokens.shape) != expected:
            raise ValueError(
                f"{self.family}: frames of {height}x{width} pixels make a {grid[0]}x{grid[1]} grid "
                f"and so tokens of shape (n, prefix + H*W, C) = {expected}, but "
                f"{type(backbone).__name__} gave {tuple(tokens.shape)}. Does it drop patches at "
                "random (patch dropout, masking), or merge them?"
            )
        return tokens


def embedding_first(embedding: Tensor, patches: Tensor) -> Tensor:
    """Puts an embedding in the class token's place: (n, C), (n, HW, C) -> (n, 1 + HW, C)."""
    return torch.cat([embedding.unsqueeze(1), patches], dim=1)
