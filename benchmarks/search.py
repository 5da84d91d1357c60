"""Searching an index of videos, beside faiss: building, opening, single queries and many, recall.

    python -m benchmarks.search                                  # 10,000 to 1,000,000 segments
    python -m benchmarks.search --sizes 10000 --json FILE
    python -m benchmarks.search --sizes 1000000 --stores "faiss, HNSW" --folder DIR --json FILE

What a model takes is left out: vectors are random, of width 512, one a video, and queries are some
of them with noise. What a search finds is compared with the exact answer, which is computed without
any index. Files are in the page cache, as after writing them, if it is large enough: what is read
from the disk during the searches is counted. faiss is measured where it is installed, on the same
vectors in float32.

A call ends after `--minutes`, says what it has left out, and with a file and a folder the same call
goes on with it: rows that the file has are not measured again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.kept_rows import KeptRows, Row, add_options, busy_note, left_out, measure_rows
from benchmarks.machine import where
from benchmarks.search_stores import FLAT, FOLDER, STORES, Folder, Searched, here
from benchmarks.vectors import BLOCK, FRAMES, QUERIES, Vectors

SIZES = 10_000, 100_000, 1_000_000
DIM = 512
LONG_S = 2.0  # all queries at once: from here on one run is enough
FIRST_S, FIRST_SIZE = 1.0, 1_000_000  # the first query of an index of this size: a target


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--stores", nargs="+", choices=STORES, default=here())
    parser.add_argument("--repeats", type=int, default=100, help="single queries that are timed")
    parser.add_argument("--folder", type=Path, help="where indexes are written, for a while")
    add_options(parser)
    options = parser.parse_args(arguments)

    rows = KeptRows(options.json, options.minutes)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        wanted = itertools.product(options.sizes, options.stores)
        measure_rows(rows, wanted, functools.partial(measure, folder, rows, options))
    print(markdown_table(rows.figures))


def measure(
    folder: Path, rows: KeptRows, options: argparse.Namespace, size: int, store: str
) -> Row | None:
    """Build an index and time it.

    Args:
        folder: Where it is written.
        rows: What is there of it.
        options: Of the command.
        size: Number of segments.
        store: Where they are searched, one of `STORES`.

    Returns:
        The figures, in seconds and bytes; None: it was only built.

    Raises:
        OutOfTime: The time of this call is over.
        RuntimeError: A search does not find what it should.
    """
    vectors, row = Vectors(size, DIM), rows.begin(store, size)
    own = folder / f"{store.replace(', ', '-').replace(' ', '-')}-{size}"
    if not row["appended"]:  # of a call whose figures were lost, if it is there
        shutil.rmtree(own, ignore_errors=True)
    own.mkdir(parents=True, exist_ok=True)
    opening, searched = seconds(lambda: STORES[store](own, vectors))
    if len(searched) != row["appended"]:
        raise RuntimeError(
            f"{own} has {len(searched)} segments of {row['appended']}: delete it, or the begun row"
        )
    build(searched, vectors, row, rows, options.busy)
    if "best" not in row:
        row["best"] = searched.best()
    if options.only_build:
        return None
    rows.check_time()
    if isinstance(searched, Folder):
        searched.store.close()
        opening, searched = seconds(lambda: STORES[store](own, vectors))
    queries = vectors.queries
    first, _ = seconds(lambda: searched.search(queries[:1]))
    row["recall"] = recall(searched.numbers(searched.search(queries)), row["best"])
    if store == FOLDER and row["recall"] < 1:
        raise RuntimeError(f"the search of a folder is exact, but recall@10 is {row['recall']}")
    rows.check_time()
    before = read_from_disk()
    row |= timed(searched.search, queries, options.repeats)
    row["read"] = read_from_disk() - before
    row["bytes"] = sum(path.stat().st_size for path in own.rglob("*") if path.is_file())
    if store == FOLDER:
        with searched.store.write() as writer:
            names, _ = seconds(lambda: writer.present(["a video"]))
        verify, _ = seconds(searched.store.verify)
        row |= {"opening": opening, "first": first, "names": names, "verify": verify}
    shutil.rmtree(own)
    del row["best"]
    return row


def build(searched: Searched, vectors: Vectors, row: Row, rows: KeptRows, busy: bool) -> None:
    """Append the blocks that are missing, and note in the row how long they took.

    Raises:
        OutOfTime: The time of this call is over; what was built is saved.
    """
    if row["appended"] == vectors.size:
        return
    row["busy"] = busy or row.get("busy", False)
    try:
        for number in range(row["appended"] // BLOCK, vectors.num_blocks):
            rows.check_time()
            block = vectors.block(number)
            row["append"] += seconds(functools.partial(searched.append, block))[0]
            row["appended"] += len(block)
    finally:
        searched.save()
        rows.save()


def recall(found: Sequence[Sequence[int]], best: Sequence[Sequence[int]]) -> float:
    """Return which share of the best were found."""
    hits = sum(len({*some} & {*others}) for some, others in zip(found, best, strict=True))
    return hits / sum(map(len, best))


def timed(search: Callable[[Tensor], Any], queries: Tensor, repeats: int) -> dict[str, float]:
    """Time single queries, one after the other, and all of them at once."""
    some = itertools.islice(itertools.cycle(queries.split(1)), repeats)
    single = [seconds(functools.partial(search, query))[0] for query in some]
    together = [seconds(functools.partial(search, queries))[0]]
    if together[0] < LONG_S:
        together += [seconds(functools.partial(search, queries))[0] for _ in range(2)]
    p95 = statistics.quantiles(single, n=20, method="inclusive")[-1] if repeats > 1 else single[0]
    return {
        "p50": statistics.median(single),
        "p95": p95,
        "together": statistics.median(together),
    }


def read_from_disk() -> int:
    """Return how many bytes this process has read that were not in the page cache."""
    return 512 * resource.getrusage(resource.RUSAGE_SELF).ru_inblock


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """Return how long a call takes, and its result."""
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def markdown_table(figures: dict[str, Any]) -> str:
    """Write a row for each size and store, and what is particular to a folder."""
    rows = sorted(figures["rows"], key=lambda row: (row["segments"], [*STORES].index(row["store"])))
    lines = [
        f"{where(figures['machine'])}: vectors of width {DIM}, one a video; in a folder in half "
        f"precision, for the second stage with {FRAMES} frame features of width {DIM} each. "
        f"{_page_cache(rows)} Recall is against all vectors compared one by one, and for the "
        "second stage against the score of the frames of all videos. The second stage takes one "
        f"query at a time, also of {QUERIES}.{busy_note(rows)}",
        "",
        "| segments | searched in | built in | bytes each | a query: p50 | p95 "
        f"| queries a second, {QUERIES} at once | recall@10 |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        cells = [
            f"{row['segments']:,}",
            row["store"],
            f"{row['append']:,.1f} s" + " \\*" * row["busy"],
            f"{row['bytes'] / row['segments']:,.0f}",
            *(f"{1000 * row[key]:,.2f} ms" for key in ("p50", "p95")),
            f"{QUERIES / row['together']:,.0f}",
            "not measured" if row["recall"] is None else f"{100 * row['recall']:.1f} %",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    lines += left_out(figures)
    folders = [row for row in rows if row["store"] == FOLDER]
    if folders:
        lines += ["", *_folder_table(folders)]
    for row in folders:
        if row["segments"] == FIRST_SIZE:
            lines += ["", *_targets(row, rows)]
    return "\n".join(lines)


def _page_cache(rows: list[Row]) -> str:
    """Say what the searches have read from the disk."""
    text = "Files are in the page cache, as after writing them: nothing is read from the disk"
    others = [
        f"{row['store']} at {row['segments']:,}, whose timed searches read "
        f"{row['read'] / 1e6:,.1f} MB from it"
        for row in rows
        if row["read"]
    ]
    return f"{text}, but in {'; '.join(others)}." if others else f"{text}."


def _folder_table(rows: list[Row]) -> list[str]:
    """Write what is particular to a folder, for each size."""
    lines = [
        "| segments in a folder | opening | first query | names, before the first `add` | `verify` "
        "|",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['segments']:,} | {1000 * row['opening']:,.1f} ms | "
            f"{1000 * row['first']:,.1f} ms | {row['names']:,.2f} s | {row['verify']:,.2f} s |"
        )
    return lines


def _targets(folder: Row, rows: list[Row]) -> list[str]:
    """Say whether the largest folder meets its targets."""
    spent = folder["opening"] + folder["first"]
    lines = [
        f"Opening an index of {folder['segments']:,} segments and answering the first query takes "
        f"{spent:.2f} s, target {FIRST_S:g} s: {_met(spent < FIRST_S)}.",
    ]
    for row in rows:
        if (row["store"], row["segments"]) == (FLAT, folder["segments"]):
            ratio = row["together"] / folder["together"]
            lines[0] += (
                f" {QUERIES} queries at once take {ratio:.2g} times less time than in faiss's flat "
                f"index, target 1: {_met(ratio > 1)}."
            )
    return lines


def _met(met: bool) -> str:
    return "met" if met else "missed"


if __name__ == "__main__":
    main()
