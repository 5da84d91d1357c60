"""The benchmark of reading videos, on a short file."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("av", reason="reading videos needs PyAV: muse-adapter[video]")

from benchmarks import decoding
from benchmarks.machine import machine
from muse_adapter.data import read_frames


def test_missing_libraries_and_wrong_frames_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for library in ("torchcodec", "torchcodec.decoders", "decord", "cv2"):
        monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.setitem(
        decoding.READERS, "first frames", (lambda path, _, t: read_frames(path, t, end=0.3)[0], ())
    )
    path = tmp_path / "v.mp4"
    decoding.write_file(path, 30)
    figures: dict[str, Any] = {"machine": machine(), "versions": {}, "not_here": {}}
    figures["rows"] = decoding.measure(path, 30, 4, 1, figures)

    assert [row["reader"] for row in figures["rows"]] == ["muse-adapter", "PyAV, everything"]
    missing = figures["not_here"]
    assert all(name in missing for name in ("torchcodec", "decord", "OpenCV"))
    assert "other frames" in missing["first frames, 4 of 30"]
    assert "| muse-adapter |" in decoding.markdown_table(figures)
