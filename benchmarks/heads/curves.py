"""Cost over the length of videos: a curve for each head, its exponent, crossings, plots."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.heads.workload import MODES

# Lines told apart in grey by dashes and markers.
DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X<>ph8"
# From dark to light, and of different hues for those who see them.
COLOURS = (
    *("#000000", "#1b4f8a", "#8a1c1c", "#2f7d32", "#6a4c93", "#b5651d", "#4d9de0"),
    *("#c2185b", "#00838f", "#9e9d24", "#795548", "#78909c", "#ff8f00"),
)

Row = Mapping[str, Any]


def curves(figures: Mapping[str, Any], mode: str) -> dict[str, list[Row]]:
    """Collect the measured rows of each head over length, of the smallest batch size.

    Args:
        figures: What `--json` keeps.
        mode: "inference" or "training".

    Returns:
        Rows by what tables call the head, shortest videos first.
    """
    rows = [row for row in figures["rows"] if "seconds" in row]
    batch = min((row["batch"] for row in rows), default=0)
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: int(row["tokens"])):
        if row["mode"] == mode and row["batch"] == batch:
            found.setdefault(row["what"], []).append(row)
    return found


class Growth(NamedTuple):
    """cost ~ length ^ exponent.

    Attributes:
        exponent: Slope of a straight line through the logarithms, by least squares.
        error: Its standard error.
        points: Lengths that it was fitted to.
    """

    exponent: float
    error: float
    points: int


def fit(costs: Mapping[int, float]) -> Growth | None:
    """Fit the exponent to costs by length; None for fewer than three lengths with a cost."""
    points = [(math.log(n), math.log(cost)) for n, cost in costs.items() if cost > 0]
    if len(points) < 3:
        return None
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in points) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in points)
    return Growth(slope, math.sqrt(rest / (len(points) - 2) / spread), len(points))


class Comparison(NamedTuple):
    """Where one head's cost meets another's, over the lengths at which both were measured.

    Attributes:
        shortest, longest: Range of those lengths.
        cheaper_first: Whether the first head is the cheaper one at the shortest length.
        crossings: Lengths where that changes, between two measured ones (straight lines between
            the logarithms).
    """

    shortest: int
    longest: int
    cheaper_first: bool
    crossings: tuple[float, ...]

    def __str__(self) -> str:
        within = f"{self.shortest:,} to {self.longest:,} tokens"
        word = "cheaper" if self.cheaper_first else "dearer"
        if not self.crossings:
            return f"none within the measured range ({within}): {word} throughout"
        parts = [f"{word} up to {self.crossings[0]:,.0f} tokens"]
        for length in self.crossings[1:]:
            word = "dearer" if word == "cheaper" else "cheaper"
            parts.append(f"{word} up to {length:,.0f}")
        parts.append(f"{'dearer' if word == 'cheaper' else 'cheaper'} from there ({within})")
        return ", ".join(parts)


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """Compare costs by length; None where fewer than two lengths have both, or all are equal."""
    lengths = sorted(n for n in first.keys() & second.keys() if first[n] > 0 and second[n] > 0)
    # Logarithms of length and of the costs' ratio, which is above zero where the first is dearer.
    gaps = [(math.log(n), math.log(first[n] / second[n])) for n in lengths if first[n] != second[n]]
    if len(lengths) < 2 or not gaps:
        return None
    return Comparison(lengths[0], lengths[-1], gaps[0][1] < 0, _sign_changes(gaps))


def draw(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `time.png` and `memory.png`, of the smallest batch size.

    Args:
        figures: What `--json` keeps.
        folder: Made if it is not there.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    by_mode = {mode: curves(figures, mode) for mode in MODES}
    order = list(dict.fromkeys(what for found in by_mode.values() for what in found))
    written = []
    for name, cost, unit, scale in (
        ("time", "seconds", "ms", 1e3),
        ("memory", "peak_bytes", "MiB", 2**-20),
    ):
        figure = Figure(figsize=(10, 4.5), layout="constrained")
        axes = figure.subplots(1, len(MODES), sharey=True)
        handles: dict[str, Any] = {}
        for axis, mode in zip(axes, MODES, strict=True):
            for what, rows in by_mode[mode].items():
                index = order.index(what)  # a head looks the same in all panels
                rows = [row for row in rows if row[cost] > 0]
                if not rows:
                    continue
                tokens = [row["tokens"] for row in rows]
                colour = COLOURS[index % len(COLOURS)]
                (handles[what],) = axis.plot(
                    tokens,
                    [row[cost] * scale for row in rows],
                    DASHES[index % len(DASHES)],
                    color=colour,
                    marker=MARKERS[index % len(MARKERS)],
                    markersize=5,
                    label=what.replace("`", ""),
                )
                if cost == "seconds":
                    low, high = zip(*(row["quartiles_s"] for row in rows), strict=True)
                    axis.fill_between(
                        tokens,
                        [value * scale for value in low],
                        [value * scale for value in high],
                        color=colour,
                        alpha=0.2,
                        linewidth=0,
                    )
            axis.set(yscale="log", title=mode, xlabel="tokens of a video")
            axis.set_xscale("log", base=2)
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.grid(which="both", alpha=0.2)
        what = "time of a run" if name == "time" else "peak memory of a run"
        axes[0].set_ylabel(f"{what}, {unit}")
        figure.legend(handles=list(handles.values()), loc="outside right center", fontsize=8)
        written.append(folder / f"{name}.png")
        # Without its version in the file, the same figures give the same picture.
        figure.savefig(written[-1], dpi=110, metadata={"Software": None})
    return written


def _sign_changes(gaps: Sequence[tuple[float, float]]) -> tuple[float, ...]:
    found = []
    for (x, here), (next_x, there) in itertools.pairwise(gaps):
        if (here < 0) != (there < 0):
            found.append(math.exp(x + here / (here - there) * (next_x - x)))
    return tuple(found)
