"""What each mechanism of the numba backend buys: the head with all of them, and without one.

    python -m benchmarks.ablation                          # every cell, about half an hour
    python -m benchmarks.ablation --tokens 3060 --quick    # a part of them
    python -m benchmarks.ablation --json benchmarks/results/ablation.json

A cell is a length, inference or a training step, a number of threads, and a machine that is quiet
or shared with one busy process. Rows of cells that are not measured again stay in the JSON file.

Before it is timed, each alternative must agree with the `torch` backend. All alternatives of a cell
run in turn within each round; a row is the median over the rounds of the ratio of two of them. A
mechanism that makes the head at least 10 % faster in no cell does not stay.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.correctness import MIN_SCALE, difference
from benchmarks.head import AttentionLayers, floor
from benchmarks.machine import machine, where, write_json
from benchmarks.measure import timed
from muse_adapter import MultiScaleMamba
from muse_adapter.layers import pyramid
from muse_adapter.layers.block import ResidualLayer
from muse_adapter.layers.mixers import BiMamba
from muse_adapter.layers.pyramid import Conv3x3
from muse_adapter.ops import linear_map, numba_cpu, use_backend
from muse_adapter.ops.backend import Backend
from muse_adapter.ops.numba_cpu import NumbaBackend, function, kernel, parallel, slices
from muse_adapter.ops.numba_cpu.schedule import Task
from muse_adapter.ops.numba_cpu.simd import inline

FRAMES, DIM = 12, 512
SIDES = {3060: 7, 12_360: 14}  # patches a side, by the tokens of the head's sequence
BUSY = 900  # seconds after which the busy process ends by itself
BOUND = 1e-4  # error of float32 against the `torch` backend in float32

Row = dict[str, Any]


class Cell(NamedTuple):
    """The circumstances of some rows."""

    tokens: int
    training: bool
    threads: int
    busy: bool

    def __str__(self) -> str:
        work = "training step" if self.training else "inference"
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        beside = "beside a busy process" if self.busy else "quiet"
        return f"{self.tokens:,} tokens, {work}, {threads}, {beside}"


def main() -> None:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", choices=SIDES, default=[*SIDES])
    parser.add_argument("--work", choices=("inference", "training"), nargs="+")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--machine", choices=("quiet", "busy"), nargs="+")
    parser.add_argument("--without", nargs="+", choices=WITHOUT, help="these mechanisms alone")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    options = parser.parse_args()

    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    for tokens in options.tokens:
        for work in options.work or ("inference", "training"):
            subject = Subject(tokens, training=work == "training")
            for load in options.machine or ("quiet", "busy"):
                for threads in options.threads:
                    cell = Cell(tokens, work == "training", threads, load == "busy")
                    rows = measure(cell, subject, options)
                    for row in rows:
                        print(f"{row['cell']:<58} {row['what']:<29} {row['ratio']:5.2f}")
                    if options.json:
                        keep(options.json, rows)


class Subject:
    """A head, its input, and what the `torch` backend makes of both."""

    def __init__(self, tokens: int, *, training: bool) -> None:
        torch.manual_seed(0)
        side = SIDES[tokens]
        # "identity" would hide the mixers from the check; the masks of dropout would differ.
        self.head = MultiScaleMamba(dim=DIM, init="release", dropout=0.0).train(training)
        self.frames = torch.randn(1, FRAMES, 1 + side**2, DIM, requires_grad=training)
        self.cotangent = torch.randn(1, DIM)
        self.sequence = torch.randn(1, tokens, DIM)
        self.maps = [
            torch.randn(FRAMES, DIM, size, size).to(memory_format=torch.channels_last)
            for size in (side // 2, side, 2 * side)
        ]
        self.attention = AttentionLayers(DIM, len(self.head.layers))
        self.training = training
        torch.set_num_threads(1)  # thousands of small steps, which threads only wait for
        with use_backend("torch"):
            self.expected = self.run()

    def run(self) -> dict[str, Tensor]:
        """Compute the embedding, in training also the gradients of the input and all parameters."""
        if not self.training:
            with torch.no_grad():
                return {"the embedding": self.head(self.frames)}
        wanted = {"the frames": self.frames, **dict(self.head.named_parameters())}
        video = self.head(self.frames)
        gradients = torch.autograd.grad(video, list(wanted.values()), self.cotangent)
        named = zip(wanted, gradients, strict=True)
        return {"the embedding": video.detach()} | {f"gradient of {n}": g for n, g in named}

    def check(self, name: str) -> None:
        """Compare with the `torch` backend.

        Raises:
            SystemExit: The embedding or a gradient differs.
        """
        if wrong := difference(self.run(), self.expected, BOUND, min_scale=MIN_SCALE):
            raise SystemExit(f"{name}: {wrong}, so no time is given")

    def run_floor(self) -> None:
        """Torch's time for the head's own matrix products and 3x3 convolutions."""
        if self.training:
            training_floor(self.head, self.sequence, self.maps)
        else:
            with torch.no_grad():
                floor(self.head, self.sequence, self.maps)

    def run_attention(self) -> None:
        """As many attention layers on a sequence of the same length."""
        if not self.training:
            with torch.no_grad():
                self.attention(self.sequence)
        else:
            x = self.sequence.clone().requires_grad_()
            y = self.attention(x)
            torch.autograd.grad(y, [x, *self.attention.parameters()], y.detach())


def training_floor(head: MultiScaleMamba, x: Tensor, maps: list[Tensor]) -> None:
    """Run what `floor` does, and the products that give the gradients of inputs and weights."""
    for layer in head.layers:
        assert isinstance(layer, ResidualLayer) and isinstance(layer.mixer, BiMamba)
        mixer = layer.mixer
        inner = _product(F.linear, x, mixer.in_proj.weight)[..., : x.shape[-1]]
        for x_proj, dt_proj in (
            (mixer.x_proj, mixer.dt_proj),
            (mixer.x_proj_b, mixer.dt_proj_b),
        ):
            low = _product(F.linear, inner, x_proj.weight)[..., : mixer.dt_rank]
            _product(F.linear, low, dt_proj.weight)
        _product(F.linear, _product(F.linear, inner, mixer.out_proj.weight), layer.fc.weight)
    for stage, level in zip(head.pyramid.stages, maps, strict=True):
        assert isinstance(stage, nn.Sequential)
        convolution = stage[-2]
        assert isinstance(convolution, Conv3x3)
        _product(functools.partial(F.conv2d, padding=1), level, convolution.weight)


def _product(operation: Callable[..., Tensor], x: Tensor, weight: Tensor) -> Tensor:
    x = x.detach().requires_grad_()
    y = operation(x, weight)
    torch.autograd.grad(y, (x, weight), y.detach())
    return y.detach()


def measure(cell: Cell, subject: Subject, options: argparse.Namespace) -> list[Row]:
    """Measure the rows of a cell."""
    torch.set_num_threads(cell.threads)
    names = options.without or list(WITHOUT)
    for name in names:
        with WITHOUT[name]():
            subject.check(f"the head without {name}")
    subject.check("the head")
    alternatives: dict[str, tuple[Callable[[], object], AbstractContextManager[None]]] = {
        "head": (subject.run, contextlib.nullcontext()),
        "floor": (subject.run_floor, contextlib.nullcontext()),
        "attention": (subject.run_attention, contextlib.nullcontext()),
    }
    seconds: dict[str, list[float]] = {name: [] for name in (*alternatives, *names)}
    with busy_process() if cell.busy else contextlib.nullcontext():
        for number in range((3 if options.quick else options.repeats) + 1):
            for name in seconds:
                run, off = alternatives.get(name) or (subject.run, WITHOUT[name]())
                with off:
                    taken, _ = timed(run)
                if number:  # the first round warms up
                    seconds[name].append(taken)
    about = machine()
    rows = [
        _row(cell, about, "head / floor", seconds["head"], seconds["floor"]),
        _row(cell, about, "attention / head", seconds["attention"], seconds["head"]),
        *(_row(cell, about, f"without {name}", seconds[name], seconds["head"]) for name in names),
    ]
    return rows


def _row(cell: Cell, about: Row, what: str, slow: list[float], fast: list[float]) -> Row:
    ratios = [a / b for a, b in zip(slow, fast, strict=True)]
    return {
        "cell": str(cell),
        "what": what,
        "ratio": statistics.median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
        "numerator_s": statistics.median(slow),
        "denominator_s": statistics.median(fast),
        "rounds": len(ratios),
        "machine": where(about),
    }


@contextlib.contextmanager
def busy_process() -> Iterator[None]:
    """Share the machine with a process that never sleeps."""
    code = f"import time\nend = time.monotonic() + {BUSY}\nwhile time.monotonic() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        yield
    finally:
        child.kill()
        child.wait()


def keep(path: Path, rows: list[Row]) -> None:
    """Add rows to the JSON file, in place of older ones of the same cell and name."""
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    new = {(row["cell"], row["what"]): row for row in (*old, *rows)}
    path.parent.mkdir(exist_ok=True)
    write_json(path, {"rows": list(new.values())})


@functools.cache
def _backward_without_flushing() -> kernel.Kernel:
    """Compile the backward kernel of the scan from a copy that keeps small gradients."""
    spec = importlib.util.find_spec("muse_adapter.ops.numba_cpu.backward")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert hasattr(module, "flush_small")
    vars(module)["flush_small"] = _unchanged
    changed: kernel.Kernel = module.backward
    changed.function.__qualname__ += "_without_flushing"  # its name on disk
    return changed


@inline
def _unchanged(value: Any) -> Any:
    return value


def _one_after_the_other(tasks: Sequence[Task], threads: int) -> None:
    for task in tasks:
        task.run()


def _on_one_thread(function: int, memory: int, threads: int) -> None:
    parallel.run_parallel(function, memory, 1)


# What the head is without one of them. Which of the first three it has depends on the processor.
WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "Winograd": lambda: patch.object(pyramid.Conv3x3, "forward", nn.Conv2d.forward),
    "torch's convolutions": lambda: patch.object(
        numba_cpu, "onednn_convolves_faster", lambda: False
    ),
    "oneDNN's products": lambda: patch.object(
        linear_map, "onednn_multiplies_faster", lambda: False
    ),
    "flushing": lambda: patch.object(function, "backward", _backward_without_flushing()),
    "slices": lambda: patch.object(NumbaBackend, "mamba_mixer", Backend.mamba_mixer),
    "schedule": lambda: patch.object(slices, "run_tasks", _one_after_the_other),
    "team": lambda: patch.object(parallel.team, "parallel_region", lambda: None),
    "kernel threads": lambda: patch.object(kernel, "run_parallel", _on_one_thread),
}

if __name__ == "__main__":
    main()
