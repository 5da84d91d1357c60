"""What the parts share: options, rows that are printed and kept as they come, timer and meter."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.machine import machine, write_json
from benchmarks.measure import MemoryMeter, in_turn
from muse_adapter.ops import backends
from tests.support.triton_interpreter import shorten_interpreter

Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """What the command line asks for.

    Attributes:
        tiny: Run on the CPU, by Triton's interpreter, at sizes that take no time.
        repeats: Runs of an alternative at least.
        max_s: Seconds after which no further run of a row begins, once there are `repeats`.
    """

    tiny: bool = False
    repeats: int = 5
    max_s: float = 1.0

    @property
    def device(self) -> str:
        """Where everything runs."""
        return "cpu" if self.tiny else "cuda"


def run_part(rows: Callable[[Options], Iterator[Row]], title: str) -> None:
    """Run a part from its command line; print and keep each row as it comes.

    Args:
        rows: Makes the rows. Each says `what` it is of; one that has `failed` is a failure of the
            part, after which it goes on.
        title: First line of the part's description.

    Raises:
        SystemExit: There is no GPU, or a row failed.
    """
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--tiny", action="store_true", help="on a CPU, at tiny sizes")
    parser.add_argument("--repeats", type=int, default=Options.repeats)
    parser.add_argument("--seconds", type=float, default=Options.max_s, help="of a row, about")
    given = parser.parse_args()
    options = Options(given.tiny, given.repeats, given.seconds)
    if options.tiny:
        os.environ["TRITON_INTERPRET"] = "1"
        options = Options(tiny=True, repeats=1, max_s=0.0)
    require_device(options)
    if options.tiny:
        shorten_kernels()
    torch.manual_seed(0)
    figures: Row = {"machine": machine(options.device), "rows": []}
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items()))
    for row in rows(options):
        show(row)
        figures["rows"].append(row)
        if given.json:
            write_json(given.json, figures)
    failed = [row["what"] for row in figures["rows"] if "failed" in row]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(figures['rows'])} failed: {'; '.join(failed)}")


def shorten_kernels() -> None:
    """Let Triton's interpreter do nothing for tiny inputs that they have no use for."""
    from muse_adapter.ops.triton_gpu import function  # imports Triton

    shorten_interpreter()
    # A chunk is computed whole, and tiny inputs have a few steps.
    function.CHUNK, function.SHORTEST = 8, 16


def require_device(options: Options) -> None:
    """Refuse to run where Triton cannot.

    Raises:
        SystemExit: The reason.
    """
    found = options.tiny or torch.cuda.is_available()
    status = backends(options.device if found else "cpu")["triton"]
    if not found or not status.available:
        raise SystemExit(f"needs a GPU that Triton runs on: {status.reason or 'torch finds none'}")


def times(steps: Mapping[str, Callable[[], Any]], options: Options) -> Row:
    """Time alternatives in turn.

    Returns:
        Medians and distances of quartiles by name, and the number of rounds.
    """
    found = in_turn(steps, options.repeats, device=options.device, max_s=options.max_s)
    return {
        "seconds": {name: timing.median for name, timing in found.items()},
        "spread_s": {name: timing.spread for name, timing in found.items()},
        "rounds": min(timing.rounds for timing in found.values()),
    }


def replayed(run: Callable[[], Any], options: Options, pool: Any = None) -> Callable[[], Any]:
    """Capture a run in a CUDA graph, whose replays take the GPU's time alone.

    Args:
        run: The run; on a CPU it is returned as it is.
        options: Of the part.
        pool: Memory that graphs share which never run at the same time.
    """
    if options.tiny:
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        run()
    return graph.replay


def peak_bytes(run: Callable[[], Any], options: Options) -> int:
    """Return the bytes held at most during a run, above those before it."""
    meter = MemoryMeter(options.device)
    run()
    return meter.added()


def show(row: Row) -> None:
    """Print a row, a line for each of its figures."""
    print(f"\n{row['what']}")
    for key, value in row.items():
        if isinstance(value, dict):
            for name, figure in value.items():
                print(f"  {key:<24} {name}: {_text(figure)}")
        elif key != "what":
            print(f"  {key:<24} {_text(value)}")


def _text(figure: Any) -> str:
    return f"{figure:.5g}" if isinstance(figure, float) else str(figure)
