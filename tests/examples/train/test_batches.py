"""Batches of different videos, and the checkpoint that a run goes on from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("sentence_transformers", reason="needs sentence-transformers")
pytest.importorskip("datasets", reason="needs datasets: muse-adapter[train]")

from examples.train.batches import DistinctVideos, draw_steps
from examples.train.checkpoints import last_checkpoint

TARGETS = [i % 10 for i in range(57)]


def batches(processes: int, *, epoch: int = 0, batch_size: int | None = None) -> list[list[int]]:
    sampler = DistinctVideos(
        TARGETS, batch_size=batch_size or 8 // processes, processes=processes, epochs=2, seed=3
    )
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler)
    return drawn


def test_steps_have_different_videos_and_each_caption_once() -> None:
    steps = draw_steps(TARGETS, 8, seed=0)
    drawn = [caption for step in steps for caption in step]
    assert len(drawn) == len(set(drawn)) and len(steps) >= 6
    assert all(len({TARGETS[caption] for caption in step}) == 8 for step in steps)
    assert draw_steps(TARGETS, 8, seed=0) == steps != draw_steps(TARGETS, 8, seed=1)


def test_without_repeated_videos_it_is_a_permutation() -> None:
    steps = draw_steps(range(12), 4, seed=0)
    assert sorted(caption for step in steps for caption in step) == list(range(12))


@pytest.mark.parametrize("processes", [2, 4])
def test_steps_do_not_depend_on_the_number_of_processes(processes: int) -> None:
    cut = batches(processes)
    joined = [
        [caption for batch in cut[i : i + processes] for caption in batch]
        for i in range(0, len(cut), processes)
    ]
    assert joined == batches(1)


def test_epochs_differ_in_order_and_not_in_length() -> None:
    first, second = batches(1), batches(1, epoch=1)
    assert first != second and len(first) == len(second)


def test_a_step_needs_as_many_videos() -> None:
    with pytest.raises(ValueError, match="a step has 16 different videos, but there are only 10"):
        batches(2, batch_size=8)


def write_checkpoint(folder: Path, step: int, *ranks: str, state: str = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    for rank in ranks:
        (path / f"rng_state{rank}.pth").touch()
    (path / "trainer_state.json").write_text(state)
    return path


def test_last_complete_checkpoint(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path / "none", 1) is None
    nine = write_checkpoint(tmp_path, 9, "")
    ten = write_checkpoint(tmp_path, 10, "")
    write_checkpoint(tmp_path, 11, "", state=json.dumps({"a": 1})[:-1])  # killed in the middle
    write_checkpoint(tmp_path, 12)
    (write_checkpoint(tmp_path, 13, "") / "trainer_state.json").unlink()
    assert last_checkpoint(tmp_path, 1) == ten
    write_checkpoint(tmp_path, 14, "_0")
    both = write_checkpoint(tmp_path, 8, "_0", "_1")
    assert last_checkpoint(tmp_path, 2) == both
    assert nine.is_dir()
