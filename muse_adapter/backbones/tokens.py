"""How to read the patch tokens of one backbone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int]


@dataclass(frozen=True)
class PatchTokens:
    """How to read the patch tokens of one backbone.

    The functions take the backbone as an argument and keep no reference to it, so they also work
    on a copied, pickled or compiled backbone.

    Attributes:
        family: Name of the backbone's family, for messages.
        width: Width C of the tokens.
        num_prefix_tokens: Number of tokens before the patches. If there are any, the first equals
            the backbone's own image embedding; 0 if the backbone has no such embedding.
        read_frames: Function from backbone and frames (n, 3, height, width) to tokens (n, N, C).
        grid_of: Function from backbone and (height, width) in pixels to the patch grid (H, W).
        size_of: Function from backbone to the (height, width) in pixels for which its positions
            are made; None if it takes frames of any size.
    """

    family: str
    width: int
    num_prefix_tokens: int
    read_frames: Callable[[Any, Tensor], Tensor]
    grid_of: Callable[[Any, Grid], Grid]
    size_of: Callable[[Any], Grid | None]

    def read(self, backbone: Any, frames: Tensor) -> Tensor:
        """Read the tokens of single frames.

        Args:
            backbone: A backbone of this family.
            frames: (n, 3, height, width), floating point, preprocessed for the backbone.

        Returns:
            Tokens (n, N, C), N = num_prefix_tokens + H*W, in the backbone's own dtype.

        Raises:
            ValueError: The frames have another patch grid than the backbone, or the number of
                tokens does not match the grid.
        """
        height, width = frames.shape[-2:]
        grid = self.grid_of(backbone, (height, width))
        self._check_size(backbone, (height, width), grid)
        tokens = self.read_frames(backbone, frames)
        expected = (len(frames), self.num_prefix_tokens + grid[0] * grid[1], self.width)
        if tuple(tokens.shape) != expected:
            raise ValueError(
                f"{self.family}: frames of {height}x{width} pixels have a {grid[0]}x{grid[1]} grid "
                f"and so tokens of shape (n, prefix + H*W, C) = {expected}, but "
                f"{type(backbone).__name__} returned {tuple(tokens.shape)}. Does it drop patches "
                "(patch dropout, masking) or merge them?"
            )
        return tokens

    def _check_size(self, backbone: Any, size: Grid, grid: Grid) -> None:
        """Check the grid, also where another one has as many patches (18x32 and 24x24)."""
        own_size = self.size_of(backbone)
        if own_size is None or (own_grid := self.grid_of(backbone, own_size)) == grid:
            return
        raise ValueError(
            f"{self.family}: frames are {size[0]}x{size[1]} pixels, a grid of {grid[0]}x{grid[1]} "
            f"patches, but {type(backbone).__name__} takes {own_size[0]}x{own_size[1]} pixels, "
            f"{own_grid[0]}x{own_grid[1]} patches: resize and crop the frames as its processor does"
        )


def as_pair(value: int | Sequence[int]) -> Grid:
    """Return (height, width) of a size given by one or two numbers."""
    height, width = (value, value) if isinstance(value, int) else value
    return int(height), int(width)


def prepend_embedding(embedding: Tensor, patches: Tensor) -> Tensor:
    """Put an embedding in the place of the class token.

    Args:
        embedding: (n, C).
        patches: (n, H*W, C).

    Returns:
        (n, 1 + H*W, C).
    """
    return torch.cat([embedding.unsqueeze(1), patches], dim=1)
