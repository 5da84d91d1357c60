"""Time and memory over length: one line a head, told apart in grey by dashes and markers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.report import lines
from benchmarks.settings import MODES

DASHES = ("-", "--", "-.", ":")
MARKERS = "osD^vP*X<>ph8"
# From dark to light, and of different hues for those who see them.
COLOURS = ("#000000", "#1b4f8a", "#8a1c1c", "#2f7d32", "#6a4c93", "#b5651d", "#4d9de0")


def draw(figures: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write `time.png` and `memory.png`, of the smallest batch size.

    Args:
        figures: what `--json` keeps.
        folder: made if it is not there.

    Returns:
        The files.
    """
    from matplotlib.figure import Figure

    folder.mkdir(exist_ok=True)
    by_mode = {mode: lines(figures, mode) for mode in MODES}
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
