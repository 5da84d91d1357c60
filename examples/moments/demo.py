"""The default run: MamFusion beside the frozen features, a table and a contact sheet."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from examples.moments.localise import clip_moments, localisation, window_moments
from examples.moments.material import Material
from examples.moments.models import LABELS, ClipModel
from examples.moments.report import environment, screen_table
from examples.moments.runs import UNTRAINED, measure, run
from examples.moments.settings import RunSettings
from examples.moments.sheet import draw_sheet
from examples.quickstart.files import write_json
from examples.quickstart.report import peak_gib
from examples.quickstart.runs import scan_backend


def demo(
    settings: RunSettings,
    material: Material,
    folder: Path,
    *,
    began: float,
    progress: bool = True,
) -> dict[str, Any]:
    """Train MamFusion, evaluate it beside the frozen features, draw what it finds.

    Args:
        settings: Settings of the run.
        material: The corpus and its features.
        folder: Gets `results.json` and `contact_sheet.png`.
        began: Reading of `time.perf_counter` at the start of the command.
        progress: Whether to show a progress bar.

    Returns:
        What was written to `results.json`.
    """
    results = {name: measure(material, "test", score) for name, score in UNTRAINED.items()}
    trained, result = run(settings, material, folder, progress=progress)
    model = trained.model
    assert isinstance(model, ClipModel)
    results[settings.method] = result["test"]
    test = material.features["test"], material.videos["test"]
    results["windows"]["localisation"] = localisation(window_moments, *test)
    results[settings.method]["localisation"] = localisation(
        lambda features: clip_moments(model, features), *test
    )
    print(screen_table({LABELS[name]: result for name, result in results.items()}))
    draw_sheet(folder / "contact_sheet.png", model, material)
    summary = {
        "environment": environment(scan_backend("cpu"), sys.argv[1:]),
        "videos": {name: len(videos) for name, videos in material.videos.items()},
        "seconds": round(time.perf_counter() - began, 1),
        "peak_gib": round(peak_gib(), 2),
        "results": results,
        "run": {name: value for name, value in result.items() if name not in ("losses", "test")},
    }
    write_json(folder / "results.json", summary)
    return summary
