"""Searching an index in Milvus: building, single queries, recall against exact search.

    python -m benchmarks.milvus http://localhost:19530                   # a server that runs
    python -m benchmarks.milvus clips.db --sizes 10000 --json FILE       # a file, for a while

What a model takes is left out: vectors are random, of width 512, one a video, and queries are some
of them with noise. Random vectors have no near neighbours but that one, which makes recall@10 lower
than that of real embeddings. An index of this benchmark's name is created, and dropped at the end.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import machine, where, write_json
from benchmarks.search import BATCH, DIM, NOISE, QUERIES, name, seconds
from muse_adapter.retrieval import ExactRecall
from muse_adapter.search.milvus import MilvusStore
from muse_adapter.search.segments import Settings, VideoSegments

SIZES = 10_000, 100_000
INDEXES = "FLAT", "HNSW", "IVF_SQ8"
NAME = "muse_adapter_benchmark"
CONSISTENCY = "Session", "Strong"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("uri", help="address of Milvus, without options and credentials")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--indexes", nargs="+", default=INDEXES)
    parser.add_argument("--repeats", type=int, default=64, help="single queries that are timed")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)
    if "@" in options.uri:
        parser.error("the command is kept with the figures: give credentials in MILVUS_TOKEN")

    figures: dict[str, Any] = {"machine": machine(), "rows": []}
    for size, index in itertools.product(options.sizes, options.indexes):
        version, row = measure(options.uri, size, index, options.repeats)
        figures["server"] = version
        figures["rows"].append(row)
    print(markdown_table(figures))
    if options.json:
        write_json(options.json, figures)


def measure(uri: str, size: int, index: str, repeats: int) -> tuple[str, dict[str, Any]]:
    """Build an index and time it.

    Args:
        uri: Address of Milvus.
        size: Number of segments.
        index: Its kind.
        repeats: Single queries that are timed, for each consistency level.

    Returns:
        Version of the server, and the figures in seconds.
    """
    generator = torch.Generator().manual_seed(0)
    vectors = F.normalize(torch.randn(size, DIM, generator=generator), dim=1).half().float()
    numbers = torch.randint(size, (QUERIES,), generator=generator)
    noise = NOISE * torch.randn(QUERIES, DIM, generator=generator)
    queries = F.normalize(vectors[numbers] + noise, dim=1)
    address = f"{uri}?index={index}&timeout=600"
    store = MilvusStore.create(address, NAME, Settings(DIM), b"")
    try:
        row: dict[str, Any] = {"segments": size, "index": index}
        row["append"], _ = seconds(lambda: append(store, vectors))
        row["build"], _ = seconds(lambda: wait_for_index(store))
        for level in CONSISTENCY:
            reader = MilvusStore(f"{address}&consistency={level}", NAME)
            times = [
                seconds(functools.partial(reader.read().search, query[None], 10))[0]
                for query in itertools.islice(itertools.cycle(queries), repeats)
            ]
            row[level] = {
                "p50": statistics.median(times),
                "p95": statistics.quantiles(times, n=20, method="inclusive")[-1],
            }
            reader.close()
        row["together"] = statistics.median(
            seconds(lambda: store.read().search(queries, 10))[0] for _ in range(3)
        )
        row["recall"] = recall(store, vectors, queries)
        return store._client.version, row
    finally:
        store._client.call("drop_collection", NAME)
        store.close()


def append(store: MilvusStore, vectors: Tensor) -> None:
    """Append a video for each vector."""
    with store.write() as writer:
        for start in range(0, len(vectors), BATCH):
            writer.append(
                [
                    VideoSegments(name(start + i), [(0.0, 10.0)], vector[None])
                    for i, vector in enumerate(vectors[start : start + BATCH])
                ]
            )


def wait_for_index(store: MilvusStore) -> None:
    """Let the server write all rows, and wait until it has built their index."""
    store._client.call("flush", NAME)
    while True:
        state = store._client.call("describe_index", NAME, "vector")
        if int(state.get("pending_index_rows", 0)) == 0:
            return
        time.sleep(0.2)


def recall(store: MilvusStore, vectors: Tensor, queries: Tensor) -> float:
    """Return the share of the 10 best that are found."""
    _, exact = ExactRecall(vectors).search(queries, 10)
    table = store.read()
    _, ids = table.search(queries, 10)
    found = 0
    for row, expected in zip(ids, exact.tolist(), strict=True):
        names = {segment.video for segment in table.segments(row)}
        found += len(names & {name(number) for number in expected})
    return found / exact.numel()


def markdown_table(figures: dict[str, Any]) -> str:
    """Write a row for each size and index."""
    version = re.sub(r"^v", "", figures["server"])
    lines = [
        f"{where(figures['machine'])}, Milvus {version}: vectors of width {DIM}, one a video.",
        "",
        "| segments | index | appended a second | index built | a query: p50 | p95 | p50, `Strong` "
        f"| queries a second, {QUERIES} at once | recall@10 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in figures["rows"]:
        cells = [
            f"{row['segments']:,}",
            f"`{row['index']}`",
            f"{row['segments'] / row['append']:,.0f}",
            f"{row['build']:,.1f} s",
            f"{1000 * row['Session']['p50']:,.1f} ms",
            f"{1000 * row['Session']['p95']:,.1f} ms",
            f"{1000 * row['Strong']['p50']:,.0f} ms",
            f"{QUERIES / row['together']:,.0f}",
            f"{100 * row['recall']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
