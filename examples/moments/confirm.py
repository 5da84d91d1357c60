"""The runs of the study on fresh test videos: of a seed at which nobody looked before."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from examples.moments.compare import markdown_table
from examples.moments.material import load_material, with_tokens
from examples.moments.report import environment
from examples.moments.runs import UNTRAINED, measure, run_folder
from examples.moments.settings import Corpus, RunSettings, TowerSettings
from examples.moments.train import build_model, read_model
from examples.quickstart.files import read_json, write_bytes, write_json
from examples.quickstart.runs import scan_backend


def confirm(
    corpus: Corpus, tower: TowerSettings, folder: Path, seed: int, *, progress: bool = True
) -> dict[str, Any]:
    """Evaluate the runs of the study, as they were chosen on validation, without training.

    Args:
        corpus: The corpus of the study.
        tower: Settings of its tower.
        folder: Where the study is, with `compare.json` and the checkpoints of its runs; gets
            `confirm.json` and `confirm.md`.
        seed: Of the fresh test videos.
        progress: Whether to show progress bars.

    Returns:
        What was written to `confirm.json`.

    Raises:
        ValueError: The seed is that of the study, there is no study, or a checkpoint is missing.
    """
    if seed == corpus.test_seed:
        raise ValueError(f"seed {seed} is that of the study's own test videos, give another")
    if not (folder / "compare.json").is_file():
        raise ValueError(f"there is no study in {folder}: run --compare first")
    study = read_json(folder / "compare.json")
    fresh = load_material(replace(corpus, test_seed=seed), tower, folder, progress=progress)
    if any(one["settings"]["method"] == "muse" for one in study["runs"]):
        fresh = with_tokens(fresh, folder, splits=["test"], progress=progress)
    # Behind both, so that `videos/test.json` stays the list of the study's own test videos.
    studied = load_material(corpus, tower, folder, progress=progress)
    runs = []
    for one in study["runs"]:
        settings = RunSettings(**one["settings"])
        path = run_folder(folder, settings, studied) / "checkpoint.pt"
        if not path.is_file():
            raise ValueError(f"the study's checkpoint {path} is missing")
        model = read_model(path, build_model(settings, studied.features["train"]))
        test = measure(fresh, "test", model.eval().score)
        runs.append(
            {"method": settings.method, "seed": settings.seed, "lr": settings.lr, "test": test}
        )
    summary = {
        "environment": environment(scan_backend("cpu"), sys.argv[1:]),
        "study": study["environment"],
        "test_seed": seed,
        "test_videos": len(fresh.videos["test"]),
        "untrained": {name: measure(fresh, "test", score) for name, score in UNTRAINED.items()},
        "runs": runs,
    }
    write_json(folder / "confirm.json", summary)
    write_bytes(folder / "confirm.md", markdown_table(summary).encode())
    return summary
