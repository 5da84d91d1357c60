"""What results are reported with: the machine, its memory, the table on screen."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("muse-adapter", "torch", "einops", "numpy", "numba", "av", "transformers")
DIRECTIONS = {"t2v": "text to video", "v2t": "video to text"}
MIN_CLIPS = 50  # below, one clip is more than 2 % of R@1
# R@1 of MUSE on the validation clips doubles between 200 and 300 of the default run's steps.
MIN_STEPS = 300
MEASURES = ("R@1", "R@5", "R@10", "MdR", "MnR")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(backend: str) -> dict[str, Any]:
    """Describe the present process for a results file: machine, versions, date, command.

    Args:
        backend: Backend of the scan.
    """
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": " ".join(["python -m examples.quickstart", *sys.argv[1:]]),
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "scan_backend": backend,
    }


def peak_gib() -> float:
    """Measure the most memory that the process has had at any time, in GiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # `ru_maxrss` begins with the memory of the process that started this one
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB on Linux
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def limits(clips: int, steps: int, *, ordered: bool) -> list[str]:
    """Say in sentences what the table of a run cannot show.

    Args:
        clips: Held-out clips.
        steps: Training steps.
        ordered: Whether clips have their time reversals beside them.
    """
    found = []
    if clips < MIN_CLIPS:
        found.append(
            f"only {clips} held-out clips: one more or fewer at rank 1 is {100 / clips:.1f} % of "
            "R@1, so small differences say nothing"
        )
    if ordered and steps < MIN_STEPS:
        found.append(
            f"{steps} training steps: no head tells a clip from its time reversal before about "
            f"{MIN_STEPS}, so the table does not show which of them can"
        )
    return found


def result_table(results: dict[str, dict[str, Any]]) -> str:
    """Lay out the table on screen: one line per head and direction.

    Args:
        results: What `evaluate` returned, by name of the head.
    """
    lines = [f"{'':24}{'':16}" + "".join(f"{measure:>8}" for measure in MEASURES)]
    for key, direction in DIRECTIONS.items():
        for name, result in results.items():
            values = "".join(f"{result[key][measure]:8.1f}" for measure in MEASURES)
            lines.append(f"{name:24}{direction:16}{values}")
    preferred = {name: result["pair_preference"] for name, result in results.items()}
    if all(value is not None for value in preferred.values()):
        lines.append("right clip preferred over its time reversal (order ignored: 50 %):")
        lines += [f"{name:24}{value:5.1f} %" for name, value in preferred.items()]
    return "\n".join(lines)
