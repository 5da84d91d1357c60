"""The page shows the recorded runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("numpy", reason="the example draws with numpy")
pytest.importorskip("tqdm", reason="the example shows progress with tqdm")

from examples.moments.compare import markdown_table
from examples.moments.report import screen_table

ROOT = Path(__file__).parents[3]
KEPT = ROOT / "examples" / "moments" / "results"


def test_page_shows_the_recorded_runs() -> None:
    page = (ROOT / "docs" / "moments_example.md").read_text(encoding="utf-8")
    for file in ("compare.json", "confirm.json"):
        study = json.loads((KEPT / file).read_text(encoding="utf-8"))
        assert markdown_table(study) in page
    results = json.loads((KEPT / "results.json").read_text(encoding="utf-8"))["results"]
    for name in ("windows", "mamfusion"):
        assert f"{results[name]['localisation']:.1f} %" in page
    assert len(screen_table(results).splitlines()) == 1 + len(results)
    assert (KEPT / "contact_sheet.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
