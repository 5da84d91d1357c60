"""The default run: MUSE beside mean pooling, a table, pictures, and a search index."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from examples.quickstart.contact_sheet import contact_sheet
from examples.quickstart.curves import draw_curves
from examples.quickstart.data import Part
from examples.quickstart.evaluate import embed_texts, embed_videos, videos_of
from examples.quickstart.material import PARTS, Material
from examples.quickstart.report import environment, peak_gib, result_table, write_json
from examples.quickstart.runs import run, scan_backend, seconds_per_step
from examples.quickstart.search import write_index
from examples.quickstart.settings import Settings
from examples.quickstart.train import Trained
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
        settings: of the MUSE run; the other differs in the head alone.
        material: the clips.
        folder: gets `results.json`, `contact_sheet.png`, `curves.png` and the search index.
        began: reading of `time.perf_counter` at the start of the command.
        device: where to train.
        progress: whether to show progress bars.

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
    test = material.parts["test"]
    summary = {
        "environment": environment(backend),
        "clips": material.sizes,
        "chance_r1": 100 / len(videos_of(test)[0]),
        "results": results,
    }
    write_json(folder / "results.json", summary)
    print(f"\nheld-out part, {len(test.clips)} clips; R@1 by chance {summary['chance_r1']:.2f} %")
    print(result_table(results))

    # own material is searched as a whole; of the rendered corpus only what was never seen
    names = ("test",) if material.rendered else PARTS
    write_index(folder, settings, runs["muse"], [material.parts[name] for name in names])
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


def contact_rows(trained: Trained, part: Part) -> list[tuple]:
    """Queries spread evenly over a part, each with its five best clips, for `contact_sheet`."""
    rows, targets = videos_of(part)
    queries = torch.arange(0, len(part.clips), max(1, len(part.clips) // QUERIES))[:QUERIES]
    captions = [part.clips[i].caption for i in queries.tolist()]
    texts = embed_texts(trained.model, trained.tokenizer, captions)
    best = (texts @ embed_videos(trained.model, part, rows).T).topk(min(5, len(rows)))
    sheet = []
    for i, query in enumerate(queries.tolist()):
        hits = [
            (part.clips[row], score, part.frames[row], part.mask[row])
            for score, row in zip(
                best.values[i].tolist(), rows[best.indices[i]].tolist(), strict=True
            )
        ]
        target = part.clips[int(rows[targets[query]])]
        sheet.append((captions[i], target.id, hits))
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
