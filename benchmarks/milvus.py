"""Searching an index in Milvus: building, single queries, many at once, recall.

    python -m benchmarks.milvus                                          # the package `milvus`
    python -m benchmarks.milvus --uri http://localhost:19530             # a server that runs
    python -m benchmarks.milvus --uri clips.db --sizes 10000 --json FILE # a file, for a while

Vectors, queries and what they are compared with are those of `benchmarks.search`. Random vectors
have no near neighbours but the one that a query was made from, which makes recall@10 lower than
that of real embeddings. Indexes named after this benchmark are created, and dropped at the end.

Without an address, a new server in a new folder is started for each row, and what it takes of disk
and memory is measured, too. `--server` changes its settings, such as
`dataCoord.segment.maxSize=1024`, and variables of its environment, such as `GOMAXPROCS=4`.

A call ends after `--minutes`, says what it has left out, and leaves on the server what it has
built: with a file (and a folder), the same call goes on with it, also after the server was started
again.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import itertools
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.kept_rows import KeptRows, Row, add_options, busy_note, left_out, measure_rows
from benchmarks.machine import where
from benchmarks.milvus_server import (
    Footprint,
    MilvusServer,
    missing,
    stopped_by_signals,
    unknown_settings,
)
from benchmarks.search import DIM, build, recall, timed
from benchmarks.search_stores import OwnIndex, SecondStage
from benchmarks.vectors import QUERIES, Vectors
from muse_adapter.search.milvus import MilvusStore
from muse_adapter.search.segments import Settings

SIZES = 10_000, 100_000
INDEXES = "FLAT", "HNSW", "IVF_FLAT", "IVF_SQ8"
TWICE = ", second stage"  # behind the name of an index
SEARCHES = [*INDEXES, *(index + TWICE for index in INDEXES)]
NAME = "muse_adapter_benchmark"
CONSISTENCY = "Session", "Strong"
SMALL_SEGMENT = 1024  # rows, below which a server compares them all


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--uri", help="address of Milvus, without options and credentials")
    parser.add_argument(
        "--server", nargs="+", default=[], metavar="NAME=VALUE", help="settings of a server"
    )
    parser.add_argument(
        "--folder", type=Path, help="where servers have their data, for a while, and their programs"
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--indexes", nargs="+", choices=SEARCHES, default=INDEXES)
    parser.add_argument("--repeats", type=int, default=64, help="single queries that are timed")
    add_options(parser)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("pymilvus") is None:
        parser.error("the package pymilvus is not installed: pip install 'muse-adapter[milvus]'")
    if options.uri is None and (reason := missing()):
        parser.error(f"give the address of a server: {reason}")
    if "@" in (options.uri or ""):
        parser.error("the command is kept with the figures: give credentials in MILVUS_TOKEN")
    if options.uri and options.server:
        parser.error("--server is for a server that this benchmark starts, without --uri")
    if any("=" not in setting for setting in options.server):
        parser.error("--server: expected NAME=VALUE")
    settings = dict(setting.split("=", 1) for setting in options.server)
    if settings and (unknown := unknown_settings(settings)):
        parser.error(f"--server: the package milvus does not know {', '.join(unknown)}")
    options.server = settings

    rows = KeptRows(options.json, options.minutes)
    with stopped_by_signals(sys.exit), tempfile.TemporaryDirectory() as temporary:
        options.folder = options.folder or Path(temporary)
        wanted = itertools.product(options.sizes, options.indexes)
        measure_rows(rows, wanted, functools.partial(measure, rows, options))
    print(markdown_table(rows.figures))


class Collection(OwnIndex):
    """An index in Milvus, as `benchmarks.search.build` fills it.

    Args:
        store: The index.
        vectors: That it is filled with.
        appended: How many of them are in.
    """

    def __init__(self, store: MilvusStore, vectors: Vectors, appended: int) -> None:
        super().__init__(store, vectors)
        self._appended = appended

    def __len__(self) -> int:
        return self._appended

    def append(self, vectors: Tensor) -> None:
        """Add the next block."""
        super().append(vectors)
        self._appended += len(vectors)


class CollectionTwice(SecondStage, Collection):
    """An index in Milvus, in two stages: the server sends the frames of the 50."""


def measure(rows: KeptRows, options: argparse.Namespace, size: int, index: str) -> Row | None:
    """Build an index and time it.

    Args:
        rows: What is there of it.
        options: Of the command.
        size: Number of segments.
        index: Its kind, perhaps with `TWICE`.

    Returns:
        The figures, in seconds; None: it was only built.

    Raises:
        OutOfTime: The time of this call is over.
        SystemExit: What earlier calls have built is not there.
    """
    vectors, row = Vectors(size, DIM), rows.begin(index, size)
    with contextlib.ExitStack() as ends:
        uri, server = options.uri, None
        if uri is None:
            server = ends.enter_context(own_server(options, row))
            uri = f"http://{server.host}"
        kind, twice, _ = index.partition(TWICE)
        collection_of = CollectionTwice if twice else Collection
        name, address = f"{NAME}_{_label(index)}_{size}", f"{uri}?timeout=600"
        if row["appended"]:
            store = MilvusStore(address, name)
        else:
            settings = Settings(DIM, frame_features=collection_of.frame_features)
            store = MilvusStore.create(f"{address}&index={kind}", name, settings, b"")
        ends.callback(store.close)
        if (found := store.read().num_videos) < row["appended"]:
            raise SystemExit(
                f"{name} has {found:,} vectors, {options.json} says {row['appended']:,}: give "
                "another file"
            )
        if options.uri and row["appended"] and "best" not in row:
            row["build"] = None  # that server went on building between the calls
        row["server"] = store._client.version
        collection = collection_of(store, vectors, row["appended"])
        build(collection, vectors, row, rows, options.busy)
        wait_for_index(store, name, row, rows)
        if "best" not in row:
            row["best"] = collection.best()
        if options.only_build:
            return None
        wait_for_loading(store, name, row, rows)
        queries = vectors.queries
        for level in CONSISTENCY:
            rows.check_time()
            reader = MilvusStore(f"{address}&consistency={level}", name)
            row[level] = timed(
                collection_of(reader, vectors, size).search, queries, options.repeats
            )
            reader.close()
        row["recall"] = recall(collection.numbers(collection.search(queries)), row.pop("best"))
        if server is not None:
            row["footprint"] = server.footprint()._asdict()
        store._client.call("drop_collection", name)
        return row


@contextlib.contextmanager
def own_server(options: argparse.Namespace, row: Row) -> Iterator[MilvusServer]:
    """Start a server for a row, in a folder that stays until the row is finished.

    Raises:
        SystemExit: The row was begun, and its folder is missing.
    """
    folder = options.folder / f"milvus-{_label(row['store'])}-{row['segments']}"
    if row["appended"] and not folder.exists():
        raise SystemExit(
            f"{options.json} goes on with vectors in {folder}, which is missing: give the --folder "
            "of the call before, or another file"
        )
    if not row["appended"]:  # of a call whose figures were lost, if it is there
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        programs = options.folder / "bin"  # which the package unpacks, for all servers
        programs.mkdir(exist_ok=True)
        (folder / "bin").symlink_to(programs.absolute())
    server = MilvusServer(folder, options.server)
    try:
        server.start()
        if not row["appended"]:
            row["empty"] = server.footprint()._asdict()
        yield server
    finally:
        server.kill()
    if "footprint" in row:
        shutil.rmtree(folder)


def _label(index: str) -> str:
    """Name an index in the letters that a collection and a folder may have."""
    return index.replace(",", "").replace(" ", "_")


def wait_for_index(store: MilvusStore, name: str, row: Row, rows: KeptRows) -> None:
    """Let the server write all vectors, and wait until it has built their index.

    Raises:
        OutOfTime: The time of this call is over.
    """
    start, before = time.monotonic(), row.get("build", 0.0)  # None: it cannot be measured
    store._client.call("flush", name)
    while True:
        state = store._client.call("describe_index", name, "vector")
        if before is not None:
            row["build"] = before + time.monotonic() - start
        if int(state.get("pending_index_rows", 0)) == 0:
            return
        rows.check_time()
        time.sleep(0.2)


def wait_for_loading(store: MilvusStore, name: str, row: Row, rows: KeptRows) -> None:
    """Wait until the server searches all vectors by their index, and no longer by another one.

    Raises:
        OutOfTime: The time of this call is over.
    """
    if store._client.address.is_file:  # Milvus Lite has no segments to tell of
        row["load"] = 0.0
        return

    def loaded(client: Any, timeout: float) -> int:
        found = client._get_connection().get_query_segment_info(name, timeout=timeout)
        # It names no index of segments whose vectors it compares one by one.
        plain = row["segments"] if row["store"].startswith("FLAT") else SMALL_SEGMENT - 1
        return sum(each.num_rows for each in found if each.indexID or each.num_rows <= plain)

    start = time.monotonic()
    while store._client.attempt(loaded, name) < row["segments"]:
        rows.check_time()
        time.sleep(0.2)
    row["load"] = time.monotonic() - start


def markdown_table(figures: dict[str, Any]) -> str:
    """Write a row for each size and index."""
    rows = sorted(figures["rows"], key=lambda row: (row["segments"], SEARCHES.index(row["store"])))
    versions = {re.sub(r"^v", "", row["server"]) for row in rows}
    lines = [
        f"{where(figures['machine'])}, Milvus {', '.join(sorted(versions))}: vectors of width "
        f"{DIM}, one a video.{_about_servers(rows)}{busy_note(rows)}",
        "",
        "| segments | index | appended in | built, loaded in | on disk | memory | at most "
        f"| a query: p50 | p95 | p50, `Strong` | queries a second, {QUERIES} at once | recall@10 |",
        f"|{12 * '---|'}",
    ]
    for row in rows:
        busy, footprint = " \\*" * row["busy"], row.get("footprint", {})
        built = "not measured" if row["build"] is None else f"{row['build']:,.1f} s"
        cells = [
            f"{row['segments']:,}",
            "`{}`{}{}".format(*row["store"].partition(",")),
            f"{row['append']:,.1f} s{busy}",
            f"{built}, {row['load']:,.1f} s{busy}",
            *(
                f"{footprint[part] / 1e9:.2f} GB" if footprint else "not measured"
                for part in Footprint._fields
            ),
            f"{1000 * row['Session']['p50']:,.1f} ms",
            f"{1000 * row['Session']['p95']:,.1f} ms",
            f"{1000 * row['Strong']['p50']:,.0f} ms",
            f"{QUERIES / row['Session']['together']:,.0f}",
            f"{100 * row['recall']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, *left_out(figures)])


def _about_servers(rows: list[Row]) -> str:
    """Say how servers of our own were started, and what an empty one takes."""
    empty = [row["empty"] for row in rows if "empty" in row]
    if not empty:
        return ""
    disk, memory, _ = (
        statistics.median(each[part] for each in empty) / 1e9 for part in Footprint._fields
    )
    return (
        " Each row has a new server. Disk and memory are the server's, once all was searched, and "
        f"its memory at most; an empty one takes {disk:.2f} GB and {memory:.2f} GB of them."
    )


if __name__ == "__main__":
    main()
