"""The tables on heads: against attention and CLIP4Clip's heads, growth, evaluation as a whole."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

from benchmarks.heads.curves import Growth, Row, compare, curves, fit
from benchmarks.heads.workload import MODES
from benchmarks.machine import where

COSTS = {"time": "seconds", "memory": "peak_bytes"}
# What README shows: the head, what it is compared with, and CLIP4Clip's heads.
HARDWARE_HEADS = ("muse-numba", "attention-flash", "seqTransf", "meanP")
HARDWARE_FRAMES = (16, 64)

Figures = Mapping[str, Any]


def heads_section(figures: Figures, folder: str) -> str:
    """Write the part of `markdown` that most will want, with a heading and the plots.

    Args:
        figures: What `python -m benchmarks --json` kept.
        folder: Of the results, as seen from the document.

    Returns:
        Markdown.
    """
    parts = [
        "### Against attention and CLIP4Clip's heads",
        _heading(figures),
        _costs(figures),
        _crossings(figures, fastest=True),
        _pairs(figures),
        *(
            f"![{what} of a run over the tokens of a video, a line for each head]({folder}/{file})"
            for what, file in (("Time", "time.png"), ("Peak memory", "memory.png"))
        ),
        "Growth with length, and all backends and kernels: `benchmarks/results/heads.md`.",
    ]
    return "\n" + "\n\n".join(part for part in parts if part) + "\n\n"


def pairs_section(figures: Figures, folder: str) -> str:
    """Write the evaluation as a whole, for those who patch a checkout; see `heads_section`."""
    if not (table := _pairs(figures)):
        return ""
    return f"\n{table}\n\nMeasured by {where(figures['machine'])}.\n\n"


def hardware_section(figures: Figures, folder: str) -> str:
    """Write time and memory of few heads at a short and a long video; see `heads_section`."""
    table = [
        "| head | frames | inference, ms | MiB | training, ms | MiB |",
        "|---|---|---|---|---|---|",
    ]
    for frames, head_name in itertools.product(HARDWARE_FRAMES, HARDWARE_HEADS):
        wanted = head_name, frames, [7, 7]
        rows = {
            mode: row
            for mode in MODES
            for found in curves(figures, mode).values()
            for row in found
            if (row["head"], row["frames"], row["grid"]) == wanted
        }
        if rows:
            what = next(iter(rows.values()))["what"]
            cells = [_cells(rows[mode]) if mode in rows else ["", "", ""] for mode in MODES]
            costs = " | ".join(f"{time} | {memory}" for time, _, memory in cells)
            table.append(f"| {what} | {frames} | {costs} |")
    about = f"One video of 7x7 patches a frame. {_heading(figures)}"
    return "\n" + "\n".join([*table, "", about]) + "\n\n"


def markdown(figures: Figures) -> str:
    """Write all that the figures say: costs at one length, growth, crossing lengths, evaluation."""
    parts = [
        _heading(figures),
        _costs(figures),
        _growth(figures),
        _crossings(figures),
        _pairs(figures),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _heading(figures: Figures) -> str:
    settings, on_gpu = figures["settings"], "gpu" in figures["machine"]
    kind = "what torch allocates" if on_gpu else "resident, in a fresh process"
    return (
        f"{where(figures['machine'])}; width {settings['dim']}, {settings['dtype']}. Times are "
        "medians ± half the distance of the quartiles; training is forward and backward; memory is "
        f"the peak of a run ({kind}) above weights, tokens and libraries. Tokens of a video are "
        "the backbone's, T (1 + H W); MUSE and its variants make about five times as many of them."
    )


def _costs(figures: Figures) -> str:
    """Write the table at the longest length where MUSE (and attention, if any) has both modes."""
    by_mode = {mode: curves(figures, mode) for mode in MODES}

    def sizes(function: str) -> set[tuple[Any, ...]]:
        in_modes = [
            {(row["tokens"], row["frames"], tuple(row["grid"]), row["batch"])
             for rows in found.values() for row in rows if row["function"] == function}
            for found in by_mode.values()
        ]  # fmt: skip
        return set.intersection(*in_modes)

    if not (measured := sizes("muse") & sizes("attention") or sizes("muse")):
        return ""
    tokens, frames, (height, width), batch = max(measured)
    table = [
        f"{frames} frames of {height}x{width} patches, batch {batch}:",
        "",
        "| head | parameters | inference, ms | GFLOP | MiB | training, ms | GFLOP | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    at_length = {
        mode: {what: row for what, rows in found.items() for row in rows if row["tokens"] == tokens}
        for mode, found in by_mode.items()
    }
    for what in dict.fromkeys(what for found in at_length.values() for what in found):
        cells, parameters = [], ""
        for mode in MODES:
            row = at_length[mode].get(what)
            cells += ["", "", ""] if row is None else _cells(row)
            parameters = parameters if row is None else f"{row['parameters']:,}"
        table.append(f"| {what} | {parameters} | {' | '.join(cells)} |")
    return "\n".join(table)


def _cells(row: Row) -> list[str]:
    low, high = row["quartiles_s"]
    time = f"{_digits(row['seconds'] * 1e3)} ± {_digits((high - low) / 2 * 1e3)}"
    busy = ", busy machine" if row["busy"] else ""
    return [time + busy, _digits(row["flops"] / 1e9), _digits(row["peak_bytes"] / 2**20)]


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value < 1 else f"{value:.1f}"


def _growth(figures: Figures) -> str:
    """Write the exponents of all heads."""
    table = [
        "Fitted growth with the tokens of a video, cost ~ tokens^p, p ± its standard error:",
        "",
        "| head | " + " | ".join(f"{cost}, {mode}" for mode in MODES for cost in COSTS) + " |",
        "|---|---|---|---|---|",
    ]
    by_mode = {mode: curves(figures, mode) for mode in MODES}
    for what in dict.fromkeys(what for found in by_mode.values() for what in found):
        fits = [
            fit({row["tokens"]: row[cost] for row in by_mode[mode].get(what, [])})
            for mode in MODES
            for cost in COSTS.values()
        ]
        if any(fits):
            table.append(f"| {what} | {' | '.join(_exponent(found) for found in fits)} |")
    return "\n".join(table) if len(table) > 4 else ""


def _exponent(found: Growth | None) -> str:
    return "" if found is None else f"{found.exponent:.2f} ± {found.error:.2f}"


def _crossings(figures: Figures, *, fastest: bool = False) -> str:
    """Write where MUSE meets attention, on all backends and kernels or the fastest."""
    table = []
    for mode in MODES:
        found = curves(figures, mode)
        ours, theirs = (_of(function, found) for function in ("muse", "attention"))
        if fastest:
            ours, theirs = ours[:1], theirs[:1]
        for our, their in itertools.product(ours, theirs):
            for name, cost in COSTS.items():
                first, second = (
                    {row["tokens"]: row[cost] for row in found[what]} for what in (our, their)
                )
                if (comparison := compare(first, second)) is not None:
                    table.append(f"| {our} | {their} | {mode} | {name} | {comparison} |")
    if not table:
        return ""
    which = " of the fastest of each" if fastest else ""
    head = [f"Crossing lengths{which}, interpolated between measured ones:", ""]
    titles = ["| MUSE | against | | of | MUSE is |", "|---|---|---|---|---|"]
    return "\n".join([*head, *titles, *table])


def _of(function: str, found: Mapping[str, list[Row]]) -> list[str]:
    """Order the heads of a function: measured at the longest length first, then the fastest."""

    def cost(what: str) -> tuple[int, float]:
        longest = found[what][-1]
        return -longest["tokens"], longest["seconds"]

    return sorted(
        (what for what, rows in found.items() if rows[0]["function"] == function), key=cost
    )


def _pairs(figures: Figures) -> str:
    """Write the evaluation as a whole."""
    if "pair_loop" not in figures:
        return ""
    row = figures["pair_loop"]
    height, width = row["grid"]
    measured = row["measured"]
    title = (
        f"Evaluation as a whole: {row['head']}, {row['frames']} frames of {height}x{width} "
        f"patches, batches of {row['batch']} texts and {row['batch']} videos"
    )
    table = [
        title + (", on a busy machine:" if row["busy"] else ":"),
        "",
        "| texts x videos | head runs, pair loop | once per video | seconds, pair loop "
        "| once per video | |",
        "|---|---|---|---|---|---|",
        _pair_line(measured, "measured"),
        *(_pair_line(part, "computed from measured parts") for part in row["computed"]),
    ]
    return "\n".join(table)


def _pair_line(part: Row, kind: str) -> str:
    runs, seconds = part["head_runs"], part["seconds"]
    size = f"{part['size']:,} x {part['size']:,}"
    return (
        f"| {size} | {runs['published']:,} | {runs['ours']:,} | {_digits(seconds['published'])} | "
        f"{_digits(seconds['ours'])} | {kind} |"
    )
