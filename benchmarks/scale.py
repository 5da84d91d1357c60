"""What 10 million and 1 billion segments need, computed from measured parts.

    python -m benchmarks.scale             # from the figures in benchmarks/results

Measured are, each in its own benchmark: the bytes and the times of an index in a folder
(`benchmarks.search`), the reading of a video (`benchmarks.decoding`), and the head on a GPU
(`benchmarks.gpu`). Times are taken to grow with the number of segments, as exact search does. What
no run of ours has measured is a formula here, with its assumption beside it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.machine import ROOT
from benchmarks.search_stores import FOLDER

RESULTS = ROOT / "benchmarks" / "results"
SEGMENTS = 10_000_000, 1_000_000_000
DIM, FRAMES = 512, 12
GIB = 2**30
NODE_GIB = 64  # memory of a machine
NODE_CORES = 16
USABLE = 0.75  # of a machine's memory, for vectors; the rest is the system's and the queries'

# HNSW as published: the vector in float32 and, with M neighbours a layer, 2 M links in the lowest
# layer and M in each of the 1 / (M - 1) layers above it, of four bytes each.
# Frame features are kept beside them in base64, four bytes for three.
HNSW_M = 16
FRAME_BYTES = 2 * FRAMES * DIM
HNSW_BYTES = 4 * DIM + 4 * (2 * HNSW_M + HNSW_M / (HNSW_M - 1))

# A ViT-B/32 at 224 pixels: products of a frame, and what is assumed of the GPU that computes them.
WIDTH, LAYERS, TOKENS, PATCH_NUMBERS = 768, 12, 50, 3 * 32 * 32
PEAK_FLOPS, ACHIEVED = 989e12, 1 / 3  # an H200's published rate in bfloat16, and a third of it

Figures = Mapping[str, Any]


class Parts(NamedTuple):
    """What was measured.

    Attributes:
        segments: Of the largest index.
        bytes: Of one of its segments, frame features left out.
        query: Seconds of one query, a segment.
        together: Seconds of one of 64 queries at once, a segment.
        write: Seconds to append a segment.
        read: Seconds to take 12 frames from a video of 300, on one core.
        head: Seconds of the head for a video of 12 frames, on a GPU.
    """

    segments: int
    bytes: float
    query: float
    together: float
    write: float
    read: float
    head: float


def measured(search: Figures, decoding: Figures, gpu: Figures) -> Parts:
    """Take the parts from what the benchmarks kept."""
    row = max(
        (row for row in search["rows"] if row["store"] == FOLDER),
        key=lambda row: row["segments"],
    )
    reading = next(
        row
        for row in decoding["rows"]
        if (row["reader"], row["sampled"]) == ("muse-adapter", FRAMES)
    )
    head = next(
        row
        for name, part in gpu.items()
        if name.startswith("head")
        for row in part["rows"]
        if row["tokens"] == 3060
    )
    count = row["segments"]
    return Parts(
        count,
        row["bytes"] / count,
        row["p50"] / count,
        row["together"] / 64 / count,
        row["append"] / count,
        reading["seconds"][1],
        head["seconds"]["bimamba inference"] / 16,
    )


def vit_flops() -> float:
    """Compute the operations of one frame: two for each multiply-add."""
    layer = 12 * WIDTH**2 * TOKENS + 2 * TOKENS**2 * WIDTH
    return 2.0 * (LAYERS * layer + (TOKENS - 1) * PATCH_NUMBERS * WIDTH)


def needs(parts: Parts, segments: int) -> dict[str, str]:
    """Compute what a number of segments needs, by what it is."""
    usable = USABLE * NODE_GIB * GIB
    vectors, frames = segments * parts.bytes, segments * FRAME_BYTES
    graph = segments * HNSW_BYTES
    backbone = segments * FRAMES * vit_flops() / (PEAK_FLOPS * ACHIEVED)
    return {
        "reading the videos, hours of a core": _hours(segments * parts.read),
        "backbone (ViT-B/32), hours of a GPU, by arithmetic": _hours(backbone),
        "head, hours of a GPU": _hours(segments * parts.head),
        "a folder: disk for vectors": _bytes(vectors),
        f"a folder: disk for {FRAMES} frame features a segment": _bytes(frames),
        "a folder: memory in which all vectors stay": _bytes(vectors),
        "a folder: one query, exact, in memory": _seconds(segments * parts.query),
        "a folder: 64 queries at once, each": _seconds(segments * parts.together),
        "a folder: writing, hours of its one writer": _hours(segments * parts.write),
        f"Milvus, HNSW with M = {HNSW_M}: memory, by formula": _bytes(graph),
        f"Milvus, HNSW: machines of {NODE_GIB} GiB": f"{math.ceil(graph / usable):,}",
        f"Milvus, HNSW with {FRAMES} frame features a segment: machines": (
            f"{math.ceil((graph + 4 / 3 * frames) / usable):,}"
        ),
    }


def limits(parts: Parts) -> dict[str, str]:
    """Compute where a folder stops, and a single server."""
    usable = USABLE * NODE_GIB * GIB
    return {
        f"a folder: vectors fill a machine of {NODE_GIB} GiB": f"{usable / parts.bytes:,.0f}",
        "a folder: one query takes a second": f"{1 / parts.query:,.0f}",
        "a folder: one of 64 queries at once takes a second": f"{1 / parts.together:,.0f}",
        f"a Milvus server: HNSW fills {NODE_GIB} GiB, by formula": f"{usable / HNSW_BYTES:,.0f}",
        f"a Milvus server: HNSW with {FRAMES} frame features a segment fills them": (
            f"{usable / (HNSW_BYTES + 4 / 3 * FRAME_BYTES):,.0f}"
        ),
    }


def markdown_table(search: Figures, decoding: Figures, gpu: Figures) -> str:
    """Write the tables of the documents."""
    parts = measured(search, decoding, gpu)
    columns = [needs(parts, segments) for segments in SEGMENTS]
    lines = [
        "Computed by `python -m benchmarks.scale`, not measured, from an index of "
        f"{parts.segments:,} segments (one query {_seconds(parts.segments * parts.query)}, "
        f"{parts.bytes:,.0f} bytes each), {_seconds(parts.read)} to read {FRAMES} of 300 frames, "
        f"and {_seconds(parts.head)} of the head a video on an H200.",
        "",
        "| computed for | " + " | ".join(f"{count:,} segments" for count in SEGMENTS) + " |",
        "|---|" + "---|" * len(SEGMENTS),
        *(f"| {what} | {' | '.join(column[what] for column in columns)} |" for what in columns[0]),
        "",
        "| a store stops being enough where, computed | segments |",
        "|---|---|",
        *(f"| {what} | {count} |" for what, count in limits(parts).items()),
    ]
    return "\n".join(lines)


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.0f}" if seconds >= 36_000 else f"{seconds / 3600:,.1f}"


def _seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.1f} s"
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def _bytes(count: float) -> str:
    tib = count / 2**40
    return f"{tib:,.1f} TiB" if tib >= 1 else f"{count / GIB:,.0f} GiB"


def section(search: Figures) -> str:
    """Write the part of the documents that the figures of an index, and the other parts, give."""
    others = (RESULTS / name for name in ("decoding.json", "gpu/h200.json"))
    return f"\n{markdown_table(search, *map(_read, others))}\n\n"


def _read(file: Path) -> Figures:
    figures: Figures = json.loads(file.read_text(encoding="utf-8"))
    return figures


def main() -> None:
    """Print the tables."""
    file = RESULTS / "search.json"
    if not file.exists():
        raise SystemExit(f"no figures to compute from: python -m benchmarks.search --json {file}")
    print(section(_read(file)).strip())


if __name__ == "__main__":
    main()
