"""How the benchmarks measure: alternatives in turn within one run, medians, and their ratios."""

from __future__ import annotations

import datetime
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muse_adapter import __version__


class Timing(NamedTuple):
    """Seconds of one alternative: the median, and the distance of the quartiles."""

    median: float
    spread: float


def in_turn(alternatives: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Time the alternatives in turn, `repeats` rounds, so that noise meets all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in alternatives}
    for run in alternatives.values():
        run()  # warm-up: compilation, allocation, caches
    for _ in range(repeats):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: _timing(values) for name, values in seconds.items()}


def machine() -> dict[str, Any]:
    """What a figure must be read with: machine, versions, threads, date and command."""
    return {
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "muse_adapter": __version__,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
    }


def where(about: Mapping[str, Any]) -> str:
    """What `machine` has found, in words: the command, on what it ran, and when."""
    device = about.get("gpu") or f"{about['threads']} threads of an {about['processor']}"
    return f"`{about['command']}` on {device}, torch {about['torch']}, {about['date'][:10]}"


def agree(got: Tensor, expected: Tensor, what: str, bound: float = 1e-4) -> None:
    """The gate before every timing.

    Raises:
        SystemExit: the results differ by more than `bound` of the largest value.
    """
    error = ((got - expected).abs().max() / expected.abs().max()).item()
    if not error < bound:
        raise SystemExit(f"{what}: the results differ by {error:.1e}, so no time is given")


def peak_bytes() -> int:
    """Most memory that this process has had resident so far."""
    status = Path("/proc/self/status")
    if status.exists():  # `ru_maxrss` begins with the memory of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def peak_gib() -> float:
    """The same in GiB."""
    return peak_bytes() / 2**30


def write_json(path: Path, figures: dict[str, Any]) -> None:
    """Write beside and rename: an interrupt leaves the old file or the new one."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    os.replace(beside, path)


def _timing(values: list[float]) -> Timing:
    if len(values) < 2:
        return Timing(values[0], 0.0)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Timing(median, high - low)


def _module() -> str:
    """Name of the benchmark that was started, as in `benchmarks.head`."""
    path = Path(sys.argv[0])
    return f"benchmarks.{path.stem}" if path.stem != "__main__" else "benchmarks"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
