"""Searching an index of videos: building, opening, the first query and the following ones.

    python -m benchmarks.search                                  # 10,000 to 1,000,000 segments
    python -m benchmarks.search --sizes 10000 --json FILE

What a model takes is left out: vectors are random, of width 512, one a video, and queries are some
of them with noise, so that the right answers are known. A size is timed only after all of them were
found. Files are in the page cache, as after writing them. Where faiss is installed, its flat index
in memory is measured beside, on the same vectors in float32.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine, where, write_json
from muse_adapter.search.segments import Settings, VideoSegments
from muse_adapter.search.store import create_store, open_store

SIZES = 10_000, 100_000, 1_000_000
DIM = 512
BATCH = 1000  # videos that are appended at once
QUERIES = 64
NOISE = 0.02  # of each number of a query; a unit vector's are 0.04
LONG_S = 2.0  # all queries at once: from here on one run is enough
FIRST_S, FIRST_SIZE = 1.0, 1_000_000  # the first query of an index of this size: a target


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=100, help="single queries that are timed")
    parser.add_argument("--folder", type=Path, help="where the index is written, for a while")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)

    figures: dict[str, Any] = {"machine": machine(), "rows": []}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            figures["rows"].append(measure(Path(folder), size, options.repeats))
        if options.json:
            write_json(options.json, figures)
    print(markdown_table(figures))


def measure(folder: Path, size: int, repeats: int) -> dict[str, Any]:
    """Build an index and time it.

    Args:
        folder: An empty folder.
        size: Number of segments.
        repeats: Single queries that are timed.

    Returns:
        The figures of this size, in seconds and bytes.

    Raises:
        RuntimeError: A search does not find what it should.
    """
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(size, (QUERIES,), generator=generator)
    queries = torch.empty(QUERIES, DIM)
    store = create_store(folder, "videos", Settings(DIM), b"")
    flat = _flat_index()
    build = 0.0
    for start in range(0, size, BATCH):
        vectors = F.normalize(
            torch.randn(min(BATCH, size - start), DIM, generator=generator), dim=1
        )
        for i, number in enumerate(numbers.tolist()):
            if start <= number < start + len(vectors):
                noise = NOISE * torch.randn(DIM, generator=generator)
                queries[i] = F.normalize(vectors[number - start] + noise, dim=0)
        videos = [
            VideoSegments(name(start + i), [(0.0, 10.0)], vectors[i : i + 1])
            for i in range(len(vectors))
        ]
        if flat is not None:
            flat.add(vectors.numpy())
        with store.write() as writer:
            build += seconds(functools.partial(writer.append, videos))[0]
    store.close()

    opening, store = seconds(lambda: open_store(folder, "videos"))
    first, _ = seconds(lambda: store.read().search(queries[:1], 10))
    check(store.read(), queries, numbers)
    found = _timed(lambda some: store.read().search(some, 10), queries, repeats)
    if flat is not None:
        beside = _timed(lambda some: flat.search(some.numpy(), 10), queries, repeats)
        found |= {f"faiss_{name}": value for name, value in beside.items()}
    with store.write() as writer:
        names, _ = seconds(lambda: writer.present(["a video"]))
    verifying, _ = seconds(store.verify)
    return {
        "segments": size,
        "bytes": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
        "build": build,
        "opening": opening,
        "first": first,
        "names": names,
        "verify": verifying,
        **found,
    }


def _timed(search: Callable[[Tensor], Any], queries: Tensor, repeats: int) -> dict[str, float]:
    """Time single queries, one after the other, and all of them at once."""
    rows = itertools.islice(itertools.cycle(queries.split(1)), repeats)
    single = [seconds(functools.partial(search, row))[0] for row in rows]
    together = [seconds(functools.partial(search, queries))[0]]
    if together[0] < LONG_S:
        together += [seconds(functools.partial(search, queries))[0] for _ in range(2)]
    p95 = statistics.quantiles(single, n=20, method="inclusive")[-1] if repeats > 1 else single[0]
    return {
        "p50": statistics.median(single),
        "p95": p95,
        "together": statistics.median(together),
    }


def _flat_index() -> Any:
    """Return faiss's `IndexFlatIP`, empty; None: faiss is not installed."""
    try:
        faiss = importlib.import_module("faiss")
    except ImportError:
        return None
    return faiss.IndexFlatIP(DIM)


def name(number: int) -> str:
    """Return the path of a made-up video."""
    return f"videos/of/some/corpus/{number:09d}.mp4"


def check(table: Any, queries: Tensor, numbers: Tensor) -> None:
    """Check that each query finds the video it was made from.

    Raises:
        RuntimeError: One does not.
    """
    _, ids = table.search(queries, 10)
    found = [table.segments(row)[0].video for row in ids]
    expected = [name(number) for number in numbers.tolist()]
    if found != expected:
        wrong = sum(a != b for a, b in zip(found, expected, strict=True))
        raise RuntimeError(f"{wrong} of {len(expected)} queries did not find their video")


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call takes, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def markdown_table(figures: dict[str, Any]) -> str:
    """Write a row for each size."""
    lines = [
        f"{where(figures['machine'])}: vectors of width {DIM} in half precision, one a video.",
        "",
        "| segments | bytes each | appended a second | opening | first query | a query: p50 | p95 "
        f"| queries a second, {QUERIES} at once | names, before the first `add` | `verify` |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        cells = [
            f"{row['segments']:,}",
            f"{row['bytes'] / row['segments']:,.0f}",
            f"{row['segments'] / row['build']:,.0f}",
            *(f"{1000 * row[key]:,.1f} ms" for key in ("opening", "first", "p50", "p95")),
            f"{QUERIES / row['together']:,.0f}",
            *(f"{row[key]:,.2f} s" for key in ("names", "verify")),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    beside = [row for row in figures["rows"] if "faiss_p50" in row]
    if beside:
        lines += ["", *_beside_faiss(beside)]
    for row in figures["rows"]:
        if row["segments"] == FIRST_SIZE:
            spent = row["opening"] + row["first"]
            met = "met" if spent < FIRST_S else "missed"
            lines += [
                "",
                f"Opening an index of {FIRST_SIZE:,} segments and answering the first query takes "
                f"{spent:.2f} s, target {FIRST_S:g} s: {met}.",
            ]
    return "\n".join(lines)


def _beside_faiss(rows: list[dict[str, Any]]) -> list[str]:
    """Write a row for each size, the index against faiss."""
    lines = [
        "Beside faiss's `IndexFlatIP`, in memory, in float32:",
        "",
        f"| segments | a query: p50 | faiss | {QUERIES} at once | faiss | times faster |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, theirs = row["together"], row["faiss_together"]
        lines.append(
            f"| {row['segments']:,} | {1000 * row['p50']:,.1f} ms | "
            f"{1000 * row['faiss_p50']:,.1f} ms | {1000 * ours:,.0f} ms | {1000 * theirs:,.0f} ms "
            f"| {theirs / ours:.1f} |"
        )
    return lines


if __name__ == "__main__":
    main()
