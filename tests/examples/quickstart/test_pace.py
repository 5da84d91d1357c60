"""Warnings of slow steps, the limits of the table, tokens of a frozen backbone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from examples.quickstart import pace
from examples.quickstart.frozen import TokenRows, encode_once
from examples.quickstart.material import Material
from examples.quickstart.model import build_model, build_tokenizer
from examples.quickstart.pace import MEASURED_S, Pace, expected_seconds
from examples.quickstart.report import limits
from examples.quickstart.settings import Settings
from muse_adapter.encoders import embed_videos


class FakeThreads:
    """Counts how often the threads were looked at."""

    looks = 0
    sees_others = True

    def adjust(self) -> None:
        FakeThreads.looks += 1


@pytest.mark.parametrize(
    ("sees_others", "remedy"),
    [
        (True, "from now on there are as many as others leave processors"),
        (False, "interrupt, and go on from the last checkpoint with --threads 1"),
    ],
)
def test_slow_steps_are_told_once_and_get_the_threads_that_are_free(
    monkeypatch: pytest.MonkeyPatch,
    threads: Callable[[int], None],
    sees_others: bool,
    remedy: str,
) -> None:
    threads(2)
    monkeypatch.setattr(pace, "FreeThreads", FakeThreads)
    monkeypatch.setattr(FakeThreads, "looks", 0)
    monkeypatch.setattr(FakeThreads, "sees_others", sees_others)
    steps = Pace(expected=2.0)
    assert [steps.step(3.9) for _ in range(10)] == [None] * 10
    assert FakeThreads.looks == 0
    # Three slow ones are the median of five.
    *before, told = [steps.step(24.0) for _ in range(3)]
    assert before == [None] * 2 and "steps take 24.0 s, 2.0 s were expected" in told
    assert told.endswith(remedy)
    assert [steps.step(24.0) for _ in range(7)] == [None] * 7
    assert FakeThreads.looks == 7


@pytest.mark.parametrize("expected", [None, 5.0])
def test_the_fastest_step_is_expected_where_it_took_less(expected: float | None) -> None:
    steps = Pace(expected)
    assert not any(steps.step(1.0) for _ in range(5))
    assert any(steps.step(4.0) for _ in range(5))


def test_only_the_default_run_has_a_measured_expectation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUSE_ADAPTER_BACKEND", "torch")
    assert expected_seconds(Settings(), "cpu") is None
    monkeypatch.delenv("MUSE_ADAPTER_BACKEND")
    assert expected_seconds(Settings(), "cpu") in (None, MEASURED_S["muse"])
    assert expected_seconds(Settings(num_frames=4), "cpu") is None


def test_the_table_says_what_it_cannot_show() -> None:
    assert limits(200, 600, ordered=True) == []
    few, short = limits(8, 20, ordered=True)
    assert "only 8 held-out clips: one more or fewer at rank 1 is 12.5 % of R@1" in few
    assert "20 training steps: no head tells a clip from its time reversal before" in short
    assert len(limits(8, 20, ordered=False)) == 1


def test_a_frozen_backbone_encodes_each_clip_once(
    material: Material, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(size=16, num_frames=4, backbone=str(clip_folder))
    model = build_model(settings, build_tokenizer(settings, []))
    encoded = encode_once(settings, material, model, tmp_path)
    read = model.encoder.frame_tokens
    monkeypatch.setattr(model.encoder, "frame_tokens", lambda *_: pytest.fail("encoded again"))
    test = encoded.splits["test"]
    assert isinstance(test.frames, TokenRows) and len(test.frames) == len(test.mask)
    given = embed_videos(model, test.frames, test.mask)
    monkeypatch.setattr(model.encoder, "frame_tokens", read)
    frames = material.splits["test"]
    expected = embed_videos(model, frames.frames, frames.mask)
    torch.testing.assert_close(given, expected, rtol=0, atol=5e-3)  # tokens are kept as float16
    assert replace(settings, head="mean_pool").learns is False
    assert settings.learns and replace(settings, head="mean_pool", train_backbone=True).learns
