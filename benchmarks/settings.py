"""What a run measures: the presets, and the cases that they span."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

MODES = ("inference", "training")
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}


class Case(NamedTuple):
    """Tokens of one size, and what is done with them.

    Attributes:
        mode: "inference", or "training": forward and backward, gradients of weights and tokens.
        frames, grid, batch: T, (H, W) and B; every frame has a class token.
    """

    mode: str
    frames: int
    grid: tuple[int, int]
    batch: int

    @property
    def tokens(self) -> int:
        """Tokens of one video, T (1 + H W): the length that growth is measured over."""
        return self.frames * (1 + self.grid[0] * self.grid[1])

    def __str__(self) -> str:
        height, width = self.grid
        return f"{self.mode}, {self.frames} frames of {height}x{width}, batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what a figure says, the machine apart.

    Attributes:
        frames, grids, batches: the axes; every combination is measured, in both modes.
        limit_s: a head whose run is expected to take longer is not timed; the repeats of one that
            is end after half of it, or after four runs where these take longer.
        pairs: texts, and videos, of the evaluation that is measured.
        pair_batch: texts, and videos, in one of its batches.
        leave_out: heads that are measured only when named.
        heads: the heads to measure; empty: all that run here but `leave_out`.
        device: "cpu" or "cuda".
        dtype: a name of `DTYPES`; in half precision the weights stay float32, under autocast.
    """

    frames: tuple[int, ...]
    grids: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    limit_s: float
    pairs: int
    pair_batch: int
    leave_out: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"
    dim: int = 512
    threads: int = 1

    def cases(self) -> Iterator[Case]:
        """All cases of a mode, then of the other; short videos first."""
        sizes = list(itertools.product(self.batches, self.frames, self.grids))
        for mode in MODES:
            cases = [Case(mode, frames, grid, batch) for batch, frames, grid in sizes]
            yield from sorted(cases, key=lambda case: (case.batch, case.tokens, case.frames))

    @property
    def pair_case(self) -> Case:
        """The shortest videos of the run, which the evaluation as a whole is measured on."""
        grid = min(self.grids, key=lambda grid: grid[0] * grid[1])
        return Case("inference", min(self.frames), grid, self.pair_batch)

    def same_for_all_rows(self) -> dict[str, object]:
        """What rows must have in common to stand in one file."""
        names = ("device", "dtype", "dim", "threads", "limit_s")
        return {name: getattr(self, name) for name in names}


PRESETS = {
    # Two minutes on two cores.
    "quick": Settings(
        frames=(2, 4, 12),
        grids=((7, 7),),
        batches=(1,),
        limit_s=1.0,
        pairs=32,
        pair_batch=16,
        # Slow, and not what one would use.
        leave_out=("muse-reference", "attention-math", "attention-plain"),
    ),
    # The frames and the grid of the paper's data sets.
    "paper": Settings(
        frames=(4, 8, 12, 16, 32, 64),
        grids=((7, 7),),
        batches=(1, 4),
        limit_s=30.0,
        pairs=200,
        pair_batch=16,
    ),
    # What a finer backbone and longer videos ask for: hours.
    "long": Settings(
        frames=(4, 8, 12, 16, 32, 64),
        grids=((7, 7), (14, 14), (16, 16)),
        batches=(1, 4, 16),
        limit_s=300.0,
        pairs=200,
        pair_batch=16,
    ),
}
