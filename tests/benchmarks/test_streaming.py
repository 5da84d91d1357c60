"""The benchmark of streaming, on short videos."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import streaming
from muse_adapter import MultiScaleMamba


def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "TOKENS", 5)  # 2x2 patches
    # In this process, which has everything loaded.
    monkeypatch.setattr(streaming, "isolated", lambda function, *given, **_: function(*given))
    monkeypatch.setitem(streaming.STREAM, "after", 100)


def test_every_cutting_is_measured_and_written(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small(monkeypatch)
    target = tmp_path / "streaming.json"
    sizes = ["--frames", "2", "4", "--chunks", "1", "4", "--dim", "16", "--stream", "200"]
    streaming.main([*sizes, "--repeats", "1", "--json", str(target)])
    figures, printed = json.loads(target.read_text()), capsys.readouterr().out
    ways = [(row["frames"], row["chunk"]) for row in figures["rows"]]
    assert ways == [(2, None), (2, 1), (4, None), (4, 1), (4, 4)]
    assert all(row["seconds"][0] > 0 and row["peak_bytes"] >= 0 for row in figures["rows"])
    assert 0 < figures["stream"]["first_bytes"] <= figures["stream"]["last_bytes"]
    assert "chunks of 4, frames/s" in printed and "A stream of 200 frames" in printed


def test_a_cutting_that_differs_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    small(monkeypatch)
    original = MultiScaleMamba.forward_chunk

    def forgetful(head: MultiScaleMamba, tokens: torch.Tensor, state: object) -> object:
        return original(head, tokens, None)

    monkeypatch.setattr(MultiScaleMamba, "forward_chunk", forgetful)
    with pytest.raises(SystemExit, match="chunks of 1 of 2 frames: frames differs"):
        streaming.measure(2, [1], 16, 1)
