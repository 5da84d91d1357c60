"""What is run: the cases of a preset, and one head on one case."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.heads.variants import Variant, variants
from benchmarks.measure import MIN_ROUNDS, MemoryMeter, Timing, in_turn

MODES = ("inference", "training")
MAX_SAMPLES = 1 << 12  # numbers of a result that are kept
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
        frames, grids, batches: The axes; every combination is measured, in both modes.
        limit_s: Seconds. A head whose run is expected to take longer is not timed; rounds end after
            half of it, or after four where these take longer.
        pairs: Texts, and videos, of the evaluation that is measured.
        pair_batch: Texts, and videos, in one of its batches.
        leave_out: Heads that are measured only when named.
        heads: The heads to measure; empty: all that run here but `leave_out`.
        device: "cpu" or "cuda".
        dtype: A name of `DTYPES`; in half precision the weights stay float32, under autocast.
        dim: Width D.
        threads: Threads of torch.
        total_s: Seconds of the whole command, after which no further row begins.
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
    total_s: float = math.inf

    def cases(self) -> Iterator[Case]:
        """Yield all cases of a mode, then of the other; short videos first."""
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
        """Return what rows must have in common to stand in one file."""
        names = ("device", "dtype", "dim", "threads", "limit_s")
        return {name: getattr(self, name) for name in names}


PRESETS = {
    # Two minutes on two cores.
    "quick": Settings(
        frames=(2, 4, 12),
        grids=((7, 7),),
        batches=(1,),
        limit_s=1.0,
        total_s=120.0,
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


class Workload:
    """A head with its weights, and the tokens of a case.

    The same seed gives every head of one function the same weights, and all heads the same tokens.

    Args:
        variant: The head.
        case: The tokens, and what is done with them.
        settings: Device, type and width.
        module: The head itself, if it is there already.
    """

    def __init__(
        self,
        variant: Variant,
        case: Case,
        settings: Settings,
        module: nn.Module | None = None,
    ) -> None:
        self.variant, self.case, self.settings = variant, case, settings
        self.training = case.mode == "training"
        # Half precision is autocast's, as in the hosts: weights and tokens stay float32.
        dtype = torch.float64 if settings.dtype == "float64" else torch.float32
        torch.manual_seed(0)
        self.module = variant.build(settings.dim) if module is None else module
        self.module.to(settings.device, dtype).train(self.training)
        torch.manual_seed(1)
        tokens_a_frame = 1 + case.grid[0] * case.grid[1]
        tokens = torch.randn(case.batch, case.frames, tokens_a_frame, settings.dim)
        direction = torch.randn(case.batch, settings.dim)
        self.tokens = tokens.to(settings.device, dtype).requires_grad_(self.training)
        self.direction = direction.to(settings.device, dtype)  # the gradient that comes in

    def __call__(self) -> Tensor:
        """Run once; returns the embeddings, or in training the gradient of the tokens."""
        if not self.training:
            with torch.no_grad(), self.variant.force(), self._autocast():
                embedding: Tensor = self.module(self.tokens, grid=self.case.grid)
            return embedding
        self.step()
        assert self.tokens.grad is not None
        return self.tokens.grad

    def step(self) -> Tensor:
        """Run forward and backward; returns the embeddings, leaves the gradients in place."""
        self.module.zero_grad(set_to_none=True)
        self.tokens.grad = None
        with self.variant.force():
            with self._autocast():
                embedding: Tensor = self.module(self.tokens, grid=self.case.grid)
            embedding.backward(self.direction.to(embedding.dtype))
        return embedding

    def _autocast(self) -> AbstractContextManager[object]:
        if self.settings.dtype in ("float32", "float64"):
            return contextlib.nullcontext()
        return torch.autocast(self.settings.device, DTYPES[self.settings.dtype])


class Outcome(NamedTuple):
    """What one head did on one case.

    Attributes:
        timing: Seconds of a run.
        peak_bytes: The most that runs held, above `held_bytes`: on a CPU resident memory, on a GPU
            what torch has allocated.
        held_bytes: What was there before the runs: libraries (CPU only), weights and tokens.
        parameters: Of the head.
        result: Numbers of the first run's result.
    """

    timing: Timing
    peak_bytes: int
    held_bytes: int
    parameters: int
    result: list[float]


def measure(name: str, case: Case, settings: Settings) -> Outcome:
    """Time a head; on a CPU to be called by `isolated`, for the peak of memory.

    Args:
        name: A key of `variants`.
        case: The tokens, and what is done with them.
        settings: Device, type, width and threads.

    Returns:
        Times, memory and result.
    """
    torch.set_num_threads(settings.threads)
    variant = variants(settings.device, DTYPES[settings.dtype])[name]
    assert isinstance(variant, Variant), variant
    warm_up = Workload(variant, case._replace(frames=1, grid=(2, 2), batch=1), settings)
    warm_up()  # loads and compiles the kernels
    workload = Workload(variant, case, settings, warm_up.module)
    meter = MemoryMeter(settings.device)
    torch.manual_seed(2)  # of dropout, in the run whose result is kept
    result = _sample(workload())
    timing = in_turn(
        {name: workload},
        MIN_ROUNDS + 1,
        device=settings.device,
        min_s=min(0.2, settings.limit_s / 10),
        max_s=settings.limit_s / 2,
    )[name]
    parameters = sum(weight.numel() for weight in workload.module.parameters())
    return Outcome(timing, meter.added(), meter.held, parameters, result)


def _sample(result: Tensor) -> list[float]:
    """Take numbers from all over a result, to compare it by: all of a small one."""
    step = result.numel() // MAX_SAMPLES | 1  # odd, so that no width hides a channel from it
    return result.detach().flatten()[::step].double().tolist()
