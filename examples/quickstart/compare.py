"""The full study: heads and objectives, three seeds each, the same clips and steps for all."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.quickstart.files import write_bytes, write_json
from examples.quickstart.frozen import encode_once
from examples.quickstart.material import Material
from examples.quickstart.model import HEADS, build_model, build_tokenizer
from examples.quickstart.report import environment
from examples.quickstart.runs import finished, run, scan_backend
from examples.quickstart.scoring import CANDIDATES
from examples.quickstart.settings import Settings

# What of the settings each entry of the study changes.
ENTRIES: dict[str, dict[str, Any]] = {
    **{head: {"head": head} for head in HEADS},
    "eercf": {"head": "muse", "objective": "eercf"},
    "mean_max_sim": {"head": "muse", "objective": "mean_max_sim"},
}
LABELS = {
    "muse": "**MUSE**",
    "mean_pool": "mean pooling (meanP)",
    "temporal_transformer": "temporal transformer (seqTransf)",
    "mamba": "MUSE, one-directional Mamba",
    "attention": "MUSE, attention",
    "conv": "MUSE, convolution",
    "frame_wise": "MUSE, frame-wise order",
    "spatial_wise": "MUSE, spatial-wise order",
    "eercf": "MUSE, EERCF's objective, coarse stage",
    "mean_max_sim": "MUSE, MeanMaxSim",
}
RERANKED_LABELS = {"eercf": f"MUSE, EERCF's objective, best {CANDIDATES} reranked"}
COLUMNS = (
    ("T2V R@1", ("t2v", "R@1")),
    ("R@5", ("t2v", "R@5")),
    ("R@10", ("t2v", "R@10")),
    ("MdR", ("t2v", "MdR")),
    ("MnR", ("t2v", "MnR")),
    ("V2T R@1", ("v2t", "R@1")),
    ("order right, %", ("pair_preference",)),
)


def compare(
    settings: Settings,
    material: Material,
    folder: Path,
    *,
    entries: Sequence[str] = tuple(ENTRIES),
    seeds: Sequence[int] = (0, 1, 2),
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Run the study, or what of it is not done yet.

    Args:
        settings: Settings of every run; head, objective and seed are set for each.
        material: The clips.
        folder: Gets `compare.json` and `compare.md`, written anew after each run.
        entries: Names in `ENTRIES`.
        seeds: The seeds.
        device: Where to train.
        progress: Whether to show progress bars.

    Returns:
        What was written to `compare.json`.
    """
    if settings.frozen:
        tokenizer = build_tokenizer(settings, material.splits["train"].captions)
        material = encode_once(settings, material, build_model(settings, tokenizer), folder)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in entries}
    summary: dict[str, Any] = {}
    for seed in seeds:
        for name in entries:
            this = replace(settings, **ENTRIES[name], seed=seed)
            result = finished(this, material, folder)
            if result is None:
                _, result = run(this, material, folder, device=device, progress=progress)
            else:
                print(f"{name}, seed {seed}: done already")
            results[name].append(result)
            summary = {
                "environment": environment(scan_backend(device)),
                "clips": material.sizes,
                "training_seconds": round(
                    sum(run["train_seconds"] for runs in results.values() for run in runs)
                ),
                "chance_r1": 100 / len(material.splits["test"].frames),
                "summary": {name: summarise(runs) for name, runs in results.items() if runs},
                "reranked": {
                    name: summarise([{**run, **run["reranked"]} for run in runs])
                    for name, runs in results.items()
                    if runs and "reranked" in runs[0]
                },
                "runs": [_without_curves(run) for runs in results.values() for run in runs],
            }
            write_json(folder / "compare.json", summary)
            write_bytes(folder / "compare.md", markdown_tables(summary).encode())
    return summary


def _without_curves(result: dict[str, Any]) -> dict[str, Any]:
    """Leave out a run's 800 losses; they stay in its own file."""
    return {name: value for name, value in result.items() if name != "losses"}


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compute mean and spread (sample standard deviation; None for one run) of each column."""
    columns = {}
    for name, keys in COLUMNS:
        values = [_at(result, keys) for result in results]
        if any(value is None for value in values):
            continue
        columns[name] = {
            "mean": statistics.fmean(values),
            "spread": statistics.stdev(values) if len(values) > 1 else None,
        }
    return {
        "seeds": [result["seed"] for result in results],
        "head_parameters": results[0]["parameters"]["head"],
        "columns": columns,
    }


def markdown_tables(study: dict[str, Any]) -> str:
    """Lay out a study: the table without reranking and, where there is one, that with it."""
    tables = [markdown_table(study["summary"])]
    if study["reranked"]:
        tables.append(markdown_table(study["reranked"], RERANKED_LABELS))
    return "\n".join(tables)


def markdown_table(summary: dict[str, dict[str, Any]], labels: Mapping[str, str] = LABELS) -> str:
    """Lay out a table: mean ± spread over the seeds, one line per entry."""
    names = [name for name, _ in COLUMNS if all(name in row["columns"] for row in summary.values())]
    lines = [
        "| head | seeds | parameters | " + " | ".join(names) + " |",
        "|---|---|---|" + "---|" * len(names),
    ]
    for entry, row in summary.items():
        cells = [_cell(row["columns"][name]) for name in names]
        start = f"| {labels[entry]} | {len(row['seeds'])} | {row['head_parameters']:,} | "
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _at(result: dict[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        result = result[key]
    return result


def _cell(column: dict[str, float | None]) -> str:
    if column["spread"] is None:
        return f"{column['mean']:.1f}"
    return f"{column['mean']:.1f} ± {column['spread']:.1f}"
