"""Whole runs on kept tokens of a frozen model: those of the videos, on one process, two, killed."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.training_corpus import launch, settings_of, start, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("corpus")]

# Of EERCF, whose matrix is trained beside the head.
FROZEN: dict[str, Any] = {"freeze": True, "objective": "eercf", "epochs": 1, "lr": 1e-4}


def execution(folder: Path, **fields: Any) -> Any:
    from examples.train.settings import Execution

    return Execution(output=folder, progress=False, **fields)


@pytest.fixture(scope="module")
def from_videos(corpus: Path) -> Path:
    """A run that encodes the videos in every step."""
    folder = corpus / "from-videos"
    assert start((settings_of(corpus, dropout=0.0, **FROZEN), execution(folder), {})) == [0]
    return folder


@pytest.mark.parametrize(
    ("dtype", "processes", "tolerance"),
    # Tokens in half precision are off by up to 2**-11 of themselves; AdamW moves a weight by at
    # most about the rate, 1e-3 for the head, in each of 4 steps.
    [("float32", 1, 1e-6), ("float32", 2, 1e-6), ("float16", 1, 1e-3)],
)
def test_tokens_equal_videos(
    dtype: str, processes: int, tolerance: float, from_videos: Path, corpus: Path
) -> None:
    name = f"{dtype}-{processes}"
    how = execution(corpus / name, processes=processes, cache_tokens=corpus / f"tokens-{name}")
    settings = settings_of(corpus, dropout=0.0, cache_dtype=dtype, **FROZEN)
    assert start(*((settings, how, rank) for rank in launch(processes))) == [0] * processes
    expected, found = weights(from_videos / "best"), weights(how.output / "best")
    assert expected.keys() == found.keys()
    assert any(name.startswith("objective.") for name in found)
    largest = 0.0
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=tolerance, msg=name)
        largest = max(largest, float((found[name] - tensor).abs().max()))
    assert (largest > 0) or dtype == "float32"
    results = [json.loads((f / "results.json").read_text()) for f in (from_videos, how.output)]
    assert results[1]["test"] == pytest.approx(results[0]["test"])


def test_killed_while_training_on_tokens(corpus: Path) -> None:
    settings = settings_of(corpus, cache_dtype="float16", **FROZEN)
    whole = execution(corpus / "whole", save_steps=2, cache_tokens=corpus / "shared-tokens")
    killed = replace(whole, output=corpus / "killed-on-tokens")
    assert start((settings, whole, {})) == [0]
    assert start((settings, killed, {}, 3)) == [-signal.SIGKILL]  # behind checkpoint-2
    assert start((settings, killed, {})) == [0]
    expected, found = weights(whole.output / "last"), weights(killed.output / "last")
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0.0, atol=0.0, msg=name)
