"""Peak memory of a training step."""

from __future__ import annotations

import json
import sys

import pytest

from benchmarks import peak_memory
from benchmarks.isolated import isolated


def test_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["m", "--frames", "2", "--grid", "4", "--dim", "16"])
    peak_memory.main()
    result = json.loads(capsys.readouterr().out)
    assert result["tokens"] == 2 * (1 + 4 + 16 + 64) and result["peak_gib"] > 0


@pytest.mark.slow(seconds=15)
def test_a_long_video_trains_in_little_memory() -> None:
    """16 frames of 14x14 patches, 16,480 tokens of width 256: forward and backward in 1.3 GiB.

    64 frames of width 512, which compute for a minute, take 3.26 GiB (docs/benchmarks.md). One
    matrix of all pairs of tokens would take 1 more, and the states of all tokens a half. A whole
    layer and the last one; with checkpointing each of the two others keeps its input alone.
    """
    result = isolated(peak_memory.training_peak, 16, 14, 256, 2)
    assert result["tokens"] == 16_480
    inputs = 2 * result["tokens"] * 256 * 4 / 2**30
    assert result["peak_gib"] + inputs < 1.3


@pytest.mark.slow(seconds=8)
@pytest.mark.parametrize(
    ("score", "tokens", "dim", "bound"),
    [
        pytest.param("gate", 16, 512, 0.8, id="gate"),
        pytest.param("similarity", 16, 512, 0.8, id="similarity"),
        pytest.param("late_interaction", 64, 128, 0.8, id="late_interaction"),
        pytest.param("eercf_scores", 64, 512, 1, id="eercf_scores"),
        pytest.param("eercf_loss", 64, 512, 1, id="eercf_loss"),
    ],
)
def test_scores_of_all_pairs_in_little_memory(
    score: str, tokens: int, dim: int, bound: float
) -> None:
    """500 texts and 500 videos, forward and backward, in GiB.

    A tensor (A, B, 512) would have 0.48, one (A, B, T, 512) 7.6 or more, and a matrix of all words
    and all tokens 0.95. EERCF keeps several of (A, B, T) without recomputing, each of 0.06 here.
    """
    assert isolated(peak_memory.scoring_peak, score, 500, 500, tokens, dim) < bound
