"""The default run: MUSE beside mean pooling, a table, pictures, and a search index."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.quickstart.captions import SPLITS
from examples.quickstart.checkpoint import Trained
from examples.quickstart.files import write_json
from examples.quickstart.material import Material
from examples.quickstart.pictures import Row, contact_sheet, draw_curves
from examples.quickstart.report import environment, peak_gib, result_table
from examples.quickstart.runs import run, scan_backend, seconds_per_step
from examples.quickstart.search import write_index
from examples.quickstart.settings import Settings
from examples.quickstart.splits import Split
from muse_adapter.encoders import embed_texts, embed_videos
from muse_adapter.ops import backends

DEMO_HEADS = ("muse", "mean_pool")
QUERIES = 6


def demo(
    settings: Settings,
    material: Material,
    folder: Path,
    *,
    began: float,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any]:
    """Train both heads, evaluate them, write everything a newcomer wants to look at.

    Args:
        settings: Settings of the MUSE run; the other differs in the head alone.
        material: The clips.
        folder: Gets `results.json`, `contact_sheet.png`, `curves.png` and the search index.
        began: Reading of `time.perf_counter` at the start of the command.
        device: Where to train.
        progress: Whether to show progress bars.

    Returns:
        What was written to `results.json`.
    """
    backend = scan_backend(device)
    print(f"selective scan: backend {backend}")
    if backend in ("torch", "reference"):
        _announce_time(settings, material, device)
    runs: dict[str, Trained] = {}
    results: dict[str, dict[str, Any]] = {}
    for head in DEMO_HEADS:
        runs[head], results[head] = run(
            replace(settings, head=head), material, folder, device=device, progress=progress
        )
    test = material.splits["test"]
    summary = {
        "environment": environment(backend),
        "clips": material.sizes,
        "chance_r1": 100 / len(test.frames),
        "results": results,
    }
    write_json(folder / "results.json", summary)
    print(f"\n{len(test.clips)} held-out clips; R@1 by chance {summary['chance_r1']:.2f} %")
    print(result_table(results))

    # own material is searched as a whole; of the rendered corpus only what was never seen
    names = ("test",) if material.rendered else SPLITS
    write_index(folder, settings, runs["muse"], [material.splits[name] for name in names])
    contact_sheet(folder / "contact_sheet.png", contact_rows(runs["muse"], test))
    draw_curves(
        folder / "curves.png",
        {head: trained.losses for head, trained in runs.items()},
        {head: trained.validation for head, trained in runs.items()},
    )
    summary["seconds"] = round(time.perf_counter() - began, 1)
    summary["peak_gib"] = round(peak_gib(), 2)
    write_json(folder / "results.json", summary)
    return summary


def contact_rows(trained: Trained, split: Split) -> list[Row]:
    """Spread queries evenly over a split and find the five best clips of each."""
    count = len(split.clips)
    queries = torch.arange(0, count, max(1, count // QUERIES))[:QUERIES].tolist()
    captions = [split.captions[query] for query in queries]
    texts = embed_texts(trained.model, trained.tokenizer(captions))
    videos = embed_videos(trained.model, split.frames, split.mask)
    best = (texts @ videos.T).topk(min(5, len(videos)))
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    sheet: list[Row] = []
    for query, (scores, rows) in zip(queries, found, strict=True):
        results = [
            (split.videos[row], score, split.frames[row], split.mask[row])
            for score, row in zip(scores, rows, strict=True)
        ]
        target = split.videos[int(split.video[query])]
        sheet.append((split.captions[query], target.id, results))
    return sheet


def _announce_time(settings: Settings, material: Material, device: str) -> None:
    print(f"the fast scan is not used ({_why_not_fast(device)}); timing a few steps ...")
    seconds = settings.steps * sum(
        seconds_per_step(replace(settings, head=head), material, device) for head in DEMO_HEADS
    )
    print(f"expected time of the two trainings: about {max(1, round(seconds / 60))} min")


def _why_not_fast(device: str) -> str:
    reason = backends(device)["numba"].reason
    return "another backend was chosen" if reason is None else reason
