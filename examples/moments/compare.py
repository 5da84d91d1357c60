"""The full study: every method, each with the learning rate that is best for it, three seeds."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from examples.moments.material import Material, with_tokens
from examples.moments.models import LABELS
from examples.moments.report import COLUMNS, environment, value
from examples.moments.runs import UNTRAINED, finished, measure, run
from examples.moments.settings import RunSettings
from examples.quickstart.files import write_bytes, write_json
from examples.quickstart.runs import scan_backend

TRAINED = [name for name in LABELS if name not in UNTRAINED]
RATES = (3e-3, 1e-3, 6e-3)
SEEDS = (0, 1, 2)


def compare(
    material: Material,
    folder: Path,
    *,
    methods: Sequence[str] = tuple(TRAINED),
    rates: Sequence[float] = RATES,
    seeds: Sequence[int] = SEEDS,
    progress: bool = True,
    **fields: Any,
) -> dict[str, Any]:
    """Run the study, or what of it is not done yet.

    The first seed is run with every learning rate; SumR on the validation videos chooses one for
    each method, with which the other seeds are run. The first rate comes first for all methods, so
    that an interrupted study has a table of all of them.

    Args:
        material: The corpus and its features.
        folder: Gets `compare.json` and `compare.md`, written anew after each run.
        methods: Trained methods.
        rates: Learning rates.
        seeds: Seeds.
        progress: Whether to show progress bars.
        **fields: Other settings of every run.

    Returns:
        What was written to `compare.json`.
    """
    results: dict[str, dict[float, list[dict[str, Any]]]] = {name: {} for name in methods}
    untrained = {name: measure(material, "test", score) for name, score in UNTRAINED.items()}
    summary: dict[str, Any] = {}
    plan: list[tuple[str, float | None, int]] = [
        (method, rate, seeds[0]) for rate in rates for method in methods
    ]
    plan += [(method, None, seed) for seed in seeds[1:] for method in methods]
    for method, rate, seed in plan:
        chosen = best_rate(results[method]) if rate is None else rate
        settings = RunSettings.of(method, seed=seed, lr=chosen, **fields)
        result = finished(settings, material, folder)
        if result is None:
            if method == "muse":
                material = with_tokens(material, folder, progress=progress)
            _, result = run(settings, material, folder, progress=progress)
        results[method].setdefault(chosen, []).append(result)
        summary = {
            "environment": environment(scan_backend("cpu"), sys.argv[1:]),
            "videos": {name: len(videos) for name, videos in material.videos.items()},
            "untrained": untrained,
            "rates": {
                name: {str(rate): runs[0]["validation"]["all"]["SumR"] for rate, runs in of.items()}
                for name, of in results.items()
            },
            "runs": [
                {name: kept for name, kept in one.items() if name not in ("losses", "curve")}
                for of in results.values()
                if of
                for one in of[best_rate(of)]
            ],
        }
        write_json(folder / "compare.json", summary)
        write_bytes(folder / "compare.md", markdown_table(summary).encode())
    return summary


def best_rate(runs: dict[float, list[dict[str, Any]]]) -> float:
    """Return the learning rate with the highest SumR on the validation videos, first seed."""
    return max(runs, key=lambda rate: runs[rate][0]["validation"]["all"]["SumR"])


def markdown_table(summary: dict[str, Any]) -> str:
    """Lay out the table of the page: mean ± sample standard deviation over the seeds."""
    columns = [(name, keys) for name, keys in COLUMNS if keys != ("localisation",)]
    lines = [
        "| method | seeds | learning rate | " + " | ".join(name for name, _ in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    rows = [(name, "", "", [result]) for name, result in summary["untrained"].items()]
    for method in dict.fromkeys(one["method"] for one in summary["runs"]):
        runs = [one for one in summary["runs"] if one["method"] == method]
        rate = f"{runs[0]['lr']:g}"
        rows.append((method, str(len(runs)), rate, [one["test"] for one in runs]))
    for name, count, rate, tests in rows:
        cells = [_cell([value(test, keys) for test in tests]) for _, keys in columns]
        lines.append(f"| {LABELS[name]} | {count} | {rate} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(values: Sequence[Any]) -> str:
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"
