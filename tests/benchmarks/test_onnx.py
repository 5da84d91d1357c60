"""The benchmark of onnxruntime, on a small head."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest

from benchmarks import onnx
from muse_adapter import MultiScaleMamba

for name in ("onnx", "onnxscript", "onnxruntime"):
    pytest.importorskip(name, reason=f"{name} is not installed")


@pytest.mark.slow
def test_all_ways_are_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx, "TOKENS", 5)  # 2x2 patches
    small = functools.partial(MultiScaleMamba, mixer="attention", depth=1)  # traced in short time
    monkeypatch.setattr(onnx, "MultiScaleMamba", small)
    target = tmp_path / "onnx.json"
    sizes = ["--frames", "2", "--batches", "1", "2", "--dim", "16"]
    onnx.main([*sizes, "--repeats", "1", "--json", str(target)])
    figures, printed = json.loads(target.read_text()), capsys.readouterr().out
    assert [row["batch"] for row in figures["rows"]] == [1, 2]
    assert all(
        row[way]["seconds"][0] > 0
        for row in figures["rows"]
        for way in (*onnx.BACKENDS, *onnx.RUNTIMES)
    )
    assert "| videos | numba, ms | torch, ms | onnxruntime, ms | onnxruntime, one thr" in printed


def test_a_file_that_differs_is_not_timed() -> None:
    def other(feeds: onnx.Feeds) -> object:
        return 0.5 * feeds["tokens"][:, 0, 0]

    head = MultiScaleMamba(dim=16, depth=1, scales=(1.0,)).eval()
    with pytest.raises(SystemExit, match="onnxruntime: the embedding differs"):
        onnx.measure(head, {onnx.RUNTIME: other}, 1, 2, 1)
