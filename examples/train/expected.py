"""Compute what a step of the paper's settings needs, from measured parts.

    python -m examples.train.expected

It reads `benchmarks/results`, and counts the memory of a CLIP ViT-B/32 (`examples.train.memory`).
Nothing measured tells the time of a CLIP or of the network between GPUs, so the time of a whole
step is not computed.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import torch

from examples.train.memory import clip_bytes, clip_vit_b32, state_bytes
from examples.train.settings import RunSettings
from muse_adapter import MultiScaleMamba

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
HEAD = "head, neighbouring steps read at once"  # the only measured one that trains whole heads
GPUS = 8
GIB = 2**30


def main() -> None:
    """Print the tables of docs/training.md."""
    print(f"{parts_table()}\n\n{memory_table()}")


def parts_table() -> str:
    """Write the table of the parts of a step."""
    head = "| data set | videos a GPU and step | head, ms | head, GiB | reading on 2 cores, s |"
    return "\n".join([head, "|---|---|---|---|---|", *map(row, data_sets())])


def memory_table() -> str:
    """Write the table of the memory of a step."""
    kept = "CLIP keeps", "CLIP keeps, checkpointed"
    columns = "weights and optimiser", *kept, "step", "step, checkpointed"
    head = f"| data set | {' | '.join(f'{column}, GiB' for column in columns)} |"
    return "\n".join([head, "|---|---|---|---|---|---|", *map(memory_row, data_sets())])


def data_sets() -> list[RunSettings]:
    """Return the paper's settings of its data sets."""
    return [
        RunSettings.of(data_set, annotations="", videos="", model="")
        for data_set in ("msrvtt", "didemo", "activitynet")
    ]


def row(settings: RunSettings) -> str:
    """Return the row of a data set in the table of parts."""
    videos = settings.batch_size // GPUS
    measured = head_row(videos, settings.frames)
    seconds = measured["seconds"]["bimamba training"]
    gib = measured["peak_bytes"]["bimamba training"] / GIB
    decoding = videos * seconds_to_read(settings.frames)
    cells = (settings.data_set, videos, f"{1000 * seconds:.0f}", f"{gib:.1f}", f"{decoding:.1f}")
    return f"| {' | '.join(map(str, cells))} |"


def memory_row(settings: RunSettings) -> str:
    """Return the row of a data set in the table of memory."""
    videos = settings.batch_size // GPUS
    head = head_row(videos, settings.frames)["peak_bytes"]["bimamba training"]
    with torch.device("meta"):  # its weights have no values
        clip = clip_vit_b32()
    states = state_bytes(clip, MultiScaleMamba(dim=512))
    sizes = videos, settings.frames, settings.words
    kept = [clip_bytes(*sizes, checkpointing=checkpointing) for checkpointing in (False, True)]
    steps = [states + head + clip for clip in kept]
    cells = [f"{size / GIB:.1f}" for size in (states, *kept, *steps)]
    return f"| {' | '.join([settings.data_set, *cells])} |"


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
