"""Search from coarse to fine, beside scorers that look at every video: times and first hits.

    python -m benchmarks.retrieval                                   # 1,000 to 10,000 videos
    python -m benchmarks.retrieval --sizes 100000 1000000 --json FILE
    python -m benchmarks.retrieval --quick

Videos and queries are synthetic, with a known answer. Frames of 10,000 and patches of 1,000 videos
are stored, the others reuse them in turn. Everything is compared with plain formulas before it is
timed. Sizes that FILE has are not measured again.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine, write_json
from benchmarks.measure import in_turn, timed
from benchmarks.retrieval.baselines import set_threads
from benchmarks.retrieval.checks import check
from benchmarks.retrieval.corpus import Corpus, Shape
from benchmarks.retrieval.rounding import near_duplicates, order_in_bytes
from benchmarks.retrieval.subjects import (
    COARSE,
    EVERY_PATCH,
    EVERYTHING,
    Subject,
    subjects,
    text_towers,
)
from benchmarks.retrieval.table import Row, markdown_table
from muse_adapter import EERCF

SIZES, QUICK_SIZES = (1_000, 3_000, 10_000), (1_000,)
REPEATS, QUICK_REPEATS = 7, 3
LONG_S = 2.0  # all queries at once: from here on one run is enough
LEFT_OUT_S = 5.0  # one query: from here on it is run once and left out of the table
IN_A_ROW_S = 0.1  # of queries one after the other, as a service answers them, before another search
# What the first hit of a search must equal, by what decides on it.
EXHAUSTIVE = {"coarse": COARSE, "frames": EVERYTHING, "patches": EVERY_PATCH}


def main(arguments: Sequence[str] | None = None, shape: Shape = Shape()) -> None:  # noqa: B008
    """Run the benchmark and print its tables.

    Args:
        arguments: Of the command line (None: the process's).
        shape: Of the corpus.
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", help="videos, default: 1000 3000 10000")
    parser.add_argument("--repeats", type=int, help=f"rounds, default: {REPEATS}")
    parser.add_argument("--quick", action="store_true", help="1,000 videos, three rounds")
    parser.add_argument(
        "--limit", type=float, default=20.0, help="seconds that queries at once may take"
    )
    parser.add_argument("--json", type=Path, help="keep the figures in this file, go on with them")
    options = parser.parse_args(arguments)
    sizes = options.sizes or (QUICK_SIZES if options.quick else SIZES)
    repeats = options.repeats or (QUICK_REPEATS if options.quick else REPEATS)

    about = machine()
    before = torch.get_num_threads()
    set_threads(1)
    check(shape)
    print("all searches agree with plain formulas", flush=True)
    figures: dict[str, Any] = {
        "machine": about,
        "queries": shape.queries,
        "text_tower": [],
        "rows": [],
        "left_out": [],
        "in_bytes": [],
        "not_here": {},
    }
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
        if kept["machine"]["code"] != about["code"]:
            raise SystemExit(f"{options.json} holds figures of other code: give another file")
        about["command"] = f"{kept['machine']['command']}`, `{about['command']}"
        figures |= {name: kept[name] for name in ("rows", "left_out", "in_bytes", "not_here")}
    done = {row["videos"] for row in figures["rows"]}
    threads = tuple(dict.fromkeys((1, os.cpu_count() or 1)))
    try:
        with torch.no_grad():
            figures["text_tower"] = [_tower(shape, count, repeats) for count in threads]
            for size in sizes:
                if size in done:
                    continue
                corpus = Corpus(size, shape)
                rows, left_out = measure(
                    corpus, threads, repeats, options.limit, figures["not_here"]
                )
                figures["rows"] += rows
                figures["left_out"] += left_out
                if corpus.own_features(patches=True):
                    once = [] if figures["in_bytes"] else [near_duplicates(shape)]
                    figures["in_bytes"] += [order_in_bytes(each) for each in (corpus, *once)]
                if options.json:
                    write_json(options.json, figures)
    finally:
        set_threads(before)
    print(markdown_table(figures))


def measure(
    corpus: Corpus,
    threads: Sequence[int],
    repeats: int,
    limit_s: float,
    not_here: dict[str, str],
) -> tuple[list[Row], list[Row]]:
    """Measure all searches of a corpus.

    Args:
        corpus: The videos and queries.
        threads: Numbers of threads, each a pass of its own.
        repeats: Rounds of single queries.
        limit_s: All queries at once are left out where single ones say that they would take longer.
        not_here: Where the reasons of missing searches are added.

    Returns:
        A row for each search and number of threads; and what was left out, with the time of its one
        run on the first number of threads.
    """
    scorer = EERCF(corpus.shape.dim, corpus.shape.frames)
    searches, missing = subjects(corpus, scorer)
    not_here |= missing
    rows: list[Row] = []
    left_out: list[Row] = []
    in_a_row: dict[str, int] = {}
    set_threads(threads[0])
    for name, subject in list(searches.items()):
        single, _ = timed(functools.partial(subject.search, torch.tensor([0])))
        if single > LEFT_OUT_S:
            left_out.append({"subject": name, "videos": corpus.size, "seconds": single})
            del searches[name]
        in_a_row[name] = math.ceil(IN_A_ROW_S / single)
    everything = torch.arange(len(corpus.text))
    for count in threads:
        set_threads(count)
        singles = {
            name: _Singles(subject.search, len(corpus.text), in_a_row[name])
            for name, subject in searches.items()
        }
        timings = in_turn(singles, repeats)
        hits: dict[str, Tensor] = {}
        for name, subject in searches.items():
            timing, seconds = timings[name], None
            median = timing.median / in_a_row[name]
            if median * len(corpus.text) <= limit_s:
                run = functools.partial(subject.search, everything)
                seconds, hits[name] = timed(run)
                if seconds < LONG_S:
                    seconds = min(timed(run)[0] for _ in range(2))
            rows.append(
                {
                    "subject": name,
                    "videos": corpus.size,
                    "threads": count,
                    "query_ms": {
                        "median": median * 1e3,
                        "minimum": singles[name].least * 1e3,
                    },
                    "busy": timing.busy,
                    "batch_s": seconds,
                    "operations": subject.operations,
                }
            )
        for row in rows[-len(searches) :]:
            row |= _quality(row["subject"], searches, hits, corpus)
            print(f"{row['subject']}, {corpus.size:,}: {row['query_ms']}", flush=True)
    return rows, left_out


class _Singles:
    """Run a search for single queries, some in a row, and remember the fastest."""

    def __init__(self, search: Callable[[Tensor], Tensor], queries: int, in_a_row: int) -> None:
        self.search, self.in_a_row = search, in_a_row
        self.order = itertools.cycle(range(queries))
        self.least = float("inf")

    def __call__(self) -> None:
        for _ in range(self.in_a_row):
            query = torch.tensor([next(self.order)])
            start = time.perf_counter()
            self.search(query)
            self.least = min(self.least, time.perf_counter() - start)


def _quality(
    name: str, searches: dict[str, Subject], hits: dict[str, Tensor], corpus: Corpus
) -> dict[str, float | None]:
    """Compare first hits with the right ones, and with those of the same score over everything."""
    ranks = searches[name].ranks
    other = EXHAUSTIVE.get(ranks)
    exact = hits.get(other) if other else None
    recalled = (hits[COARSE] == corpus.answers[:, None]).any(1).float().mean().item()
    found: dict[str, float | None] = {"recall": recalled, "right_first": None, "same_first": None}
    is_coarse = ranks == "coarse" or name.startswith("CLIP4Clip")
    if name in hits and (is_coarse or corpus.own_features(ranks == "patches")):
        first = hits[name][:, 0]
        found["right_first"] = (first == corpus.answers).float().mean().item()
        if exact is not None:
            found["same_first"] = (first == exact[:, 0]).float().mean().item()
    return found


def _tower(shape: Shape, threads: int, repeats: int) -> dict[str, Any]:
    set_threads(threads)
    timings = in_turn(text_towers(shape), repeats)
    (timing,) = timings.values()
    return {"threads": threads, "query_ms": {"median": timing.median * 1e3}, "busy": timing.busy}


if __name__ == "__main__":
    main()
