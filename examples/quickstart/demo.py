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
from examples.quickstart.frozen import encode_once
from examples.quickstart.material import Material
from examples.quickstart.model import build_model, build_tokenizer
from examples.quickstart.pictures import Row, contact_sheet, draw_curves
from examples.quickstart.report import environment, limits, peak_gib, result_table
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
    shown = material.splits["test"]
    if settings.frozen:
        model = build_model(settings, build_tokenizer(settings, shown.captions)).to(device)
        material = encode_once(settings, material, model, folder)
    if settings.backbone is not None or backend in ("torch", "reference"):
        _announce_time(settings, material, device, backend)
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
    ordered = results["muse"]["pair_preference"] is not None
    for sentence in limits(len(test.clips), settings.steps, ordered=ordered):
        print(f"note: {sentence}")

    # own material is searched as a whole; of the rendered corpus only what was never seen
    names = ("test",) if material.rendered else SPLITS
    write_index(folder, settings, runs["muse"], [material.splits[name] for name in names])
    contact_sheet(folder / "contact_sheet.png", contact_rows(runs["muse"], test, shown))
    trained = {head: run for head, run in runs.items() if run.losses}
    draw_curves(
        folder / "curves.png",
        {head: run.losses for head, run in trained.items()},
        {head: run.validation for head, run in trained.items()},
    )
    summary["seconds"] = round(time.perf_counter() - began, 1)
    summary["peak_gib"] = round(peak_gib(), 2)
    write_json(folder / "results.json", summary)
    return summary


def contact_rows(trained: Trained, split: Split, shown: Split) -> list[Row]:
    """Spread queries evenly over a split and find the five best clips of each.

    Args:
        trained: The model.
        split: What the model reads.
        shown: The same clips with their frames.
    """
    count = len(split.clips)
    queries = torch.arange(0, count, max(1, count // QUERIES))[:QUERIES].tolist()
    captions = [split.captions[query] for query in queries]
    texts = embed_texts(trained.model, trained.tokenizer(captions))
    videos = embed_videos(trained.model, split.frames, split.mask)
    similarity = texts @ videos.T
    best = similarity.topk(min(5, len(videos)))
    found = zip(best.values.tolist(), best.indices.tolist(), strict=True)
    sheet: list[Row] = []
    for number, (query, (scores, rows)) in enumerate(zip(queries, found, strict=True)):
        results = [
            (shown.videos[row], score, shown.frames[row], shown.mask[row])
            for score, row in zip(scores, rows, strict=True)
        ]
        right = int(split.video[query])
        place = 1 + int((similarity[number] > similarity[number, right]).sum())
        sheet.append((split.captions[query], split.videos[right].id, place, results))
    return sheet


def _announce_time(settings: Settings, material: Material, device: str, backend: str) -> None:
    if backend in ("torch", "reference"):
        print(f"the fast scan is not used ({_why_not_fast(device)})")
    print("timing a few steps ...")
    runs = [replace(settings, head=head) for head in DEMO_HEADS]
    learning = [run for run in runs if run.learns]
    seconds = settings.steps * sum(seconds_per_step(run, material, device) for run in learning)
    names = " and ".join(run.head for run in learning)
    print(
        f"expected time of the training ({names}, {settings.steps} steps each): "
        f"about {max(1, round(seconds / 60))} min"
    )
    if len(learning) < len(runs):
        print("mean_pool has nothing to train beside a frozen backbone: it is evaluated as it is")


def _why_not_fast(device: str) -> str:
    reason = backends(device)["numba"].reason
    return "another backend was chosen" if reason is None else reason
