"""Sizes of the scan's programs over a small grid: which are the fastest on this GPU.

    python -m benchmarks.gpu.tuning --json FILE

The constants that `muse_adapter.ops.triton_gpu.function` holds are changed one combination at a
time. Every combination computes the same numbers, which is checked before it is timed.
"""

from __future__ import annotations

import functools
import itertools
import multiprocessing
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.gpu.part import Options, Row, replayed, run_part, times
from benchmarks.gpu.workload import ONE_VIDEO, PAPER, STATES, TINY, Sizes

BOUND = 1e-3  # of float32 states and bfloat16 inputs: sums in another order
WORKERS = 12  # processes that compile

# What is tried: constants of `function`. Programs (ENOUGH) need no compilation.
FORWARD = {"BLOCK": (32, 64), "STEPS_FORWARD": (2, 4), "AHEAD": (2, 3, 4)}
FORWARD_PROGRAMS = {"ENOUGH_FORWARD": (1, 1024, 2048)}
BACKWARD = {
    "BLOCK": (16, 32),
    "STEPS_BACKWARD": (2, 4),
    "CHUNK": (16, 32),
    "AHEAD": (2, 3, 4),
}
BACKWARD_PROGRAMS = {"ENOUGH_BACKWARD": (1, 1024, 2048)}

Choice = dict[str, int]


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Compile everything at once, then time the forward and the backward pass of each choice."""
    size = TINY if options.tiny else PAPER
    if not options.tiny:
        work = [("forward", choice) for choice in choices(FORWARD)]
        work += [("backward", choice) for choice in choices(BACKWARD)]
        with multiprocessing.get_context("spawn").Pool(WORKERS) as pool:
            pool.starmap(compile_choice, work, chunksize=1)
    for name, grid, programs in (
        ("forward", FORWARD, FORWARD_PROGRAMS),
        ("backward", BACKWARD, BACKWARD_PROGRAMS),
    ):
        tried = choices({**grid, **programs})
        yield measure(name, tried[:1] + tried[-1:] if options.tiny else tried, size, options)
        if not options.tiny:
            yield measure(name, tried, ONE_VIDEO, options)


def choices(grid: Mapping[str, tuple[int, ...]]) -> list[Choice]:
    """Return all combinations of a grid."""
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def measure(name: str, tried: list[Choice], size: Sizes, options: Options) -> Row:
    """Time a pass with each choice, and keep those that run."""
    row: Row = {"what": f"{name} pass of both directions, {size}", "refused": {}}
    scans = Scans(size, options.device)
    expected = scans.run(name)
    pool = None if options.tiny else torch.cuda.graph_pool_handle()
    steps = {}
    for choice in tried:
        label = ", ".join(f"{key} {value}" for key, value in choice.items())
        try:
            with constants(choice):
                got = scans.run(name)
        except Exception as error:  # too many registers, say: a choice that this GPU refuses
            row["refused"][label] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            continue
        largest = max(map(relative_error, got, expected))
        if not largest <= BOUND:
            row["failed"] = f"{label} is off by {largest:.1e}"
            continue
        with constants(choice):
            steps[label] = replayed(functools.partial(scans.run, name), options, pool)
    row |= times(steps, options)
    row["best"] = min(row["seconds"], key=row["seconds"].get)
    return row


class Scans:
    """Both directions over random inputs; the backward pass reads what its forward pass saved."""

    def __init__(self, size: Sizes, device: str) -> None:
        from muse_adapter.ops.triton_gpu import function

        self.function = function
        batch, length, channels = size
        generator = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
            return torch.randn(shape, device=device, generator=generator).to(dtype)

        A = -torch.arange(1.0, STATES + 1, device=device).expand(channels, -1).contiguous()
        self.sides = [
            function.Side(
                x=normal(batch, length, channels),
                delta=normal(batch, length, channels),
                A=A,
                B=normal(batch, length, 1, STATES),
                C=normal(batch, length, 1, STATES),
                D=torch.ones(channels, device=device),
                bias=torch.full((channels,), -4.0, device=device),
            )
            for _ in range(2)
        ]
        self.dy = [normal(batch, length, channels, dtype=torch.float32) for _ in range(2)]
        self.saved: dict[int, Tensor] = {}

    def run(self, name: str) -> list[Tensor]:
        """Return the outputs, or the gradients."""
        plan = self.function.Plan(self.sides, 2, True, None)
        if name == "forward":
            return self.function.run_forward(plan, None, None)[0]
        if self.function.CHUNK not in self.saved:
            saved = plan.empty(*plan.shape(plan.chunks))
            self.function.run_forward(plan, None, saved)
            self.saved[self.function.CHUNK] = saved
        saved = self.saved[self.function.CHUNK]
        rows, gains, weights, _ = self.function.run_backward(
            plan, saved, self.dy, None, initial=False
        )
        return [*rows, *gains, weights]


def compile_choice(name: str, choice: Choice) -> None:
    """Compile the kernels of a choice in this process, for the cache that all share."""
    try:
        for programs in (1, 1 << 20):  # with segments and without
            with constants({**choice, "ENOUGH_FORWARD": programs, "ENOUGH_BACKWARD": programs}):
                Scans(Sizes(1, 256, PAPER.channels), "cuda").run(name)
    except Exception:  # is tried again, and then told
        pass


@contextmanager
def constants(choice: Choice) -> Iterator[None]:
    """Change constants of `function` for a while."""
    from muse_adapter.ops.triton_gpu import function

    before = {name: getattr(function, name) for name in choice}
    for name, value in choice.items():
        setattr(function, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(function, name, value)


def relative_error(got: Tensor, expected: Tensor) -> float:
    """max|got - expected| / max|expected|."""
    largest = expected.float().abs().max().item()
    return (got.float() - expected.float()).abs().max().item() / max(largest, 1e-30)


if __name__ == "__main__":
    main()
