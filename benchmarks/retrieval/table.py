"""The table of what was measured, and which targets it meets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from benchmarks.machine import where
from benchmarks.retrieval.subjects import (
    CANDIDATES,
    COARSE,
    EVERYTHING,
    FAISS,
    FRAMES,
    PATCHES,
    XCLIP,
)

Row = dict[str, Any]


class Target(NamedTuple):
    """How many times faster than another a search should be, on one thread."""

    subject: str
    than: str
    size: int
    times: float
    of: str = "query_ms"


TARGETS = (
    Target(FRAMES, XCLIP, 3_000, 50),
    Target(FRAMES, XCLIP, 10_000, 100),
    Target(PATCHES, XCLIP, 10_000, 30),
    Target(PATCHES, XCLIP, 30_000, 50),
    Target(COARSE, FAISS, 100_000, 1),
    Target(COARSE, FAISS, 100_000, 5, "batch_s"),
)


def markdown_table(figures: dict[str, Any]) -> str:
    """Write all tables, one for each size and number of threads."""
    queries = figures["queries"]
    rows: list[Row] = figures["rows"]
    lines = [
        f"{where(figures['machine'])}; width 512, 12 frames of 7x7 patches, captions of 32 words, "
        f"{CANDIDATES} candidates. Milliseconds of one query among some in a row (medians, in "
        f"brackets the minimum), queries a second of {queries} at once, and multiply-adds for each "
        "pair of query and video. First hits: how often the right video, and how often that of the "
        "same score over everything; where features are reused for lack of memory there is no "
        "figure."
    ]
    towers = ", ".join(
        f"{tower['query_ms']['median']:.1f} ms on {_threads(tower['threads'])}"
        for tower in figures["text_tower"]
    )
    lines += ["", f"A text tower of CLIP's size takes {towers} for the query, in all rows alike."]
    for size, threads in dict.fromkeys((row["videos"], row["threads"]) for row in rows):
        part = [row for row in rows if (row["videos"], row["threads"]) == (size, threads)]
        lines += ["", *_table(size, threads, part, queries)]
        slow = [
            f"{row['subject']} ({row['seconds']:.0f} s)"
            for row in figures["left_out"]
            if row["videos"] == size
        ]
        if slow:
            lines += ["", f"Left out, with the time of a single run: {', '.join(slow)}."]
    lines += _in_bytes(figures.get("in_bytes", []))
    lines += ["", *outcomes(rows), *(f"{n}: {why}." for n, why in figures["not_here"].items())]
    return "\n".join(lines) + "\n"


def outcomes(rows: list[Row]) -> Iterator[str]:
    """Say for each target that was measured whether it is met, and where two stages lose."""
    for target in TARGETS:
        ratio = _ratio(rows, target)
        if ratio is None:
            continue
        unit = "one query" if target.of == "query_ms" else "all queries at once"
        met = "met" if ratio >= target.times else "missed"
        if any(row["busy"] for row in _pair(rows, target) if row):
            met += ", busy machine"
        yield (
            f"- {target.subject} against {target.than}, {target.size:,} videos, one thread, "
            f"{unit}: {ratio:.1f} times faster, target {target.times:g}: {met}"
        )
    for row in rows:
        if not row["subject"].startswith("two stages"):
            continue
        for than in (XCLIP, EVERYTHING):
            other = _find(rows, than, row["videos"], row["threads"])
            if other and other["query_ms"]["median"] < row["query_ms"]["median"]:
                yield (
                    f"- {row['subject']} loses to {than}, {row['videos']:,} videos, "
                    f"{_threads(row['threads'])}"
                )


def _table(size: int, threads: int, rows: list[Row], queries: int) -> list[str]:
    recall = rows[0]["recall"]
    base = _find(rows, XCLIP, size, threads)
    lines = [
        f"{size:,} videos, {_threads(threads)}; the coarse stage has the right video among "
        f"{CANDIDATES} for {recall:.0%} of the queries:",
        "",
        f"| search | ms | against X-CLIP | queries/s of {queries} | multiply-adds | right first "
        "| as everything |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        time = row["query_ms"]
        speed = f"{_digits(base['query_ms']['median'] / time['median'])}x" if base else ""
        batch = f"{queries / row['batch_s']:,.0f}" if row["batch_s"] else "not measured"
        lines.append(
            f"| {row['subject']} | {_digits(time['median'])} ({_digits(time['minimum'])})"
            f"{', busy machine' if row['busy'] else ''} | {speed} | {batch} | "
            f"{row['operations']:,.0f} | {_share(row['right_first'])} | "
            f"{_share(row['same_first'])} |"
        )
    return lines


def _in_bytes(rows: list[Row]) -> list[str]:
    """Write what the order of the candidates loses where patches are in int8."""
    if not rows:
        return []
    lines = [
        "",
        f"The order of the {CANDIDATES} candidates by patches in int8, compared with that by "
        "those in half; also among near duplicates, of whose features the given share is the same:",
        "",
        "| videos | the same among the first ten | places moved, mean | right first, half "
        "| right first, int8 |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        right = row["right_first"]
        alike = f", {row['alike']:.0%} alike" if row["alike"] else ""
        lines.append(
            f"| {row['videos']:,}{alike} | {row['same_ten']:.1%} | {row['places_off']:.2f} | "
            f"{_share(right['half'])} | {_share(right['int8'])} |"
        )
    return lines


def _pair(rows: list[Row], target: Target) -> tuple[Row | None, Row | None]:
    """Find the rows that a target compares, the slower one first."""
    slow, fast = (_find(rows, name, target.size, 1) for name in (target.than, target.subject))
    return slow, fast


def _ratio(rows: list[Row], target: Target) -> float | None:
    slow, fast = _pair(rows, target)
    if slow is None or fast is None:
        return None
    before, after = slow[target.of], fast[target.of]
    if target.of == "query_ms":
        before, after = before["median"], after["median"]
    return None if before is None or after is None else before / after


def _find(rows: list[Row], subject: str, size: int, threads: int) -> Row | None:
    wanted = (subject, size, threads)
    found = (row for row in rows if (row["subject"], row["videos"], row["threads"]) == wanted)
    return next(found, None)


def _threads(count: int) -> str:
    return "one thread" if count == 1 else f"{count} threads"


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
