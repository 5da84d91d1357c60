"""Check the patch tokens of a backbone against its own embedding of the image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.backbones import find_patch_tokens
from tests.support.tiny_clips import shake

# float64 on both sides and the same formulas, in another order where a norm moves past a pool.
TOLERANCE = {"rtol": 1e-9, "atol": 1e-11}


@dataclass
class TokenCase:
    """A backbone and its expected tokens.

    Attributes:
        build: Builds the backbone.
        width: Expected width C.
        prefix: Expected number of prefix tokens.
        embedding: How the backbone embeds an image itself; None if it does not.
        patches: Its patch tokens, computed another way; None: not compared.
        size: Height and width of the frames.
        grid: Their patch grid.
    """

    build: Callable[[], nn.Module]
    width: int
    prefix: int
    embedding: Callable[[Any, Tensor], Tensor] | None
    patches: Callable[[Any, Tensor], Tensor] | None = None
    size: tuple[int, int] = (16, 16)
    grid: tuple[int, int] = (4, 4)

    def check(self) -> None:
        """Assert that the tokens are as expected."""
        backbone = shake(self.build()).double().eval()
        frames = torch.randn(3, 3, *self.size, dtype=torch.float64)
        found = find_patch_tokens(backbone)
        assert (found.width, found.num_prefix_tokens) == (self.width, self.prefix)
        assert found.grid_of(backbone, self.size) == self.grid
        with torch.no_grad():
            tokens = found.read(backbone, frames)
            assert tokens.shape == (3, self.prefix + self.grid[0] * self.grid[1], self.width)
            assert tokens.std() > 1e-3 and (tokens[0] - tokens[1]).abs().max() > 1e-3
            if self.embedding is not None:
                expected = self.embedding(backbone, frames)
                torch.testing.assert_close(tokens[:, 0], expected, **TOLERANCE)
            if self.patches is not None:
                expected = self.patches(backbone, frames)
                torch.testing.assert_close(tokens[:, self.prefix :], expected, **TOLERANCE)


def for_each(cases: dict[str, TokenCase]) -> pytest.MarkDecorator:
    """Parametrise a test over cases."""
    return pytest.mark.parametrize("case", cases.values(), ids=cases.keys())


def encode_image(clip: Any, frames: Tensor) -> Tensor:
    """Embed images with a CLIP."""
    return clip.encode_image(frames)
