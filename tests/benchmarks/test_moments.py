"""The benchmark of long videos runs, and its subjects are what they are named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import moments
from muse_adapter import MAMFUSION_SETTINGS, MamFusionConfig, MamFusionSettings
from muse_adapter.layers.gaussian import WindowedAttention
from muse_adapter.layers.mixers import BiMamba

pytestmark = pytest.mark.usefixtures("torch_scan")

SMALL = MamFusionConfig(visual_width=6, text_width=4, hidden=8, heads=2, num_clips=4)


@pytest.mark.parametrize(
    ("name", "attention", "windows", "mamba"),
    [
        ("MamFusion", 16, 12, 4),
        ("MamFusion, attention written out", 16, 12, 4),
        ("Gaussian blocks alone (GMMFormer's)", 16, 12, 0),
        ("Mamba alone", 0, 0, 4),
        ("plain attention, SDPA", 4, 0, 0),
    ],
)
def test_subjects(name: str, attention: int, windows: int, mamba: int) -> None:
    model = moments.build(name, SMALL, 9)
    branches = torch.nn.ModuleList([model.clip_branch, model.frame_branch])
    layers = [layer for layer in branches.modules() if isinstance(layer, WindowedAttention)]
    assert len(layers) == attention
    assert sum(layer.width is not None for layer in layers) == windows
    assert sum(isinstance(module, BiMamba) for module in branches.modules()) == mamba
    moments.check(name, SMALL, 9)


def test_no_time_is_given_where_results_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    original = moments.WrittenOut.forward
    monkeypatch.setattr(moments.WrittenOut, "forward", lambda *args: 1.01 * original(*args))
    with pytest.raises(SystemExit, match=r"MamFusion: \w+ differs by .*, so no time is given"):
        moments.check("MamFusion", SMALL, 9)


def test_rows_are_kept_and_the_table_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = MamFusionSettings(SMALL, lr=1.0, batch_size=1, epochs=1, patience=1)
    monkeypatch.setattr(moments, "MAMFUSION_SETTINGS", {**MAMFUSION_SETTINGS, "tvr": settings})
    monkeypatch.setattr(moments, "isolated", lambda function, *given, **_: function(*given))
    monkeypatch.setattr(moments, "LONGEST_WRITTEN_OUT", 70)
    monkeypatch.setattr(moments, "FITTED_FROM", 70)
    monkeypatch.setattr(moments, "CHECKED", 9)
    file = tmp_path / "figures.json"
    options = ["--limit", "0", "--json", str(file), "--lengths"]
    moments.main([*options, "70", "80", "90"])
    first = json.loads(file.read_text())
    assert len(first["rows"]) == 3 * 4 + 1
    table = moments.markdown_table(first)
    assert table in capsys.readouterr().out
    assert "| ms, by frames | 70 | 80 | 90 |" in table
    table = moments.markdown_table(_marked(first, busy=False))
    for name in moments.SUBJECTS:  # a single length has no growth
        assert (f"| {name} | L^" in table) is (name != moments.WRITTEN_OUT), name
    table = moments.markdown_table(_marked(first, busy=True))
    assert "| time |" not in table.replace("| time | memory |", "")
    assert "| MamFusion |  | " in table  # no growth of disturbed times
    moments.main([*options, "70", "80", "90", "100", "--minutes", "0"])
    assert json.loads(file.read_text()) == first
    assert "not measured yet: Mamba alone, 100 frames" in capsys.readouterr().out
    first["machine"]["code"] = "another"
    file.write_text(json.dumps(first))
    with pytest.raises(SystemExit, match="holds figures of other code"):
        moments.main([*options, "70"])


def _marked(figures: dict[str, Any], *, busy: bool) -> dict[str, Any]:
    return {**figures, "rows": [{**row, "busy": busy} for row in figures["rows"]]}
