"""Compute what a step of the paper's settings needs, from measured parts.

    python -m examples.train.expected

It reads `benchmarks/results`. Nothing measured tells the time of a CLIP or of the network between
GPUs, so the time of a whole step is not computed.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from examples.train.settings import RunSettings

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
HEAD = "head, neighbouring steps read at once"  # the only measured one that trains whole heads
GPUS = 8


def main() -> None:
    """Print the table of docs/training.md."""
    print("| data set | videos a GPU and step | head, ms | head, GiB | reading on 2 cores, s |")
    print("|---|---|---|---|---|")
    for data_set in ("msrvtt", "didemo", "activitynet"):
        settings = RunSettings.of(data_set, annotations="", videos="", model="")
        print(row(data_set, settings))


def row(data_set: str, settings: RunSettings) -> str:
    """Return the row of a data set."""
    videos = settings.batch_size // GPUS
    measured = head_row(videos, settings.frames)
    seconds = measured["seconds"]["bimamba training"]
    gib = measured["peak_bytes"]["bimamba training"] / 2**30
    decoding = videos * seconds_to_read(settings.frames)
    cells = (data_set, videos, f"{1000 * seconds:.0f}", f"{gib:.1f}", f"{decoding:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def head_row(videos: int, frames: int) -> dict[str, Any]:
    """Return what was measured of a head on an H200, forward and backward."""
    rows = json.loads((RESULTS / "gpu" / "h200.json").read_text())[HEAD]["rows"]
    wanted = f"head, B={videos}, T={frames}, 7x7 patches"
    return next(row for row in rows if row["what"] == wanted)


def seconds_to_read(frames: int) -> float:
    """Return the median time to sample frames of a video on 2 cores."""
    rows = json.loads((RESULTS / "decoding.json").read_text())["rows"]
    times = [r["seconds"] for r in rows if (r["reader"], r["sampled"]) == ("muse-adapter", frames)]
    return statistics.median(times[0])


if __name__ == "__main__":
    main()
