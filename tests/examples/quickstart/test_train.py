"""Training: batches, the loss, the learning rate, resuming."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch

pytest.importorskip("av", reason="the quickstart reads videos with PyAV")
pytest.importorskip("matplotlib", reason="the quickstart draws with matplotlib")
pytest.importorskip("tqdm", reason="the quickstart shows progress with tqdm")

from examples.quickstart import train
from examples.quickstart.batches import TrainingSet, batch_of
from examples.quickstart.evaluate import evaluate
from examples.quickstart.material import Material, load_material
from examples.quickstart.model import build_model
from examples.quickstart.objectives import batch_loss
from examples.quickstart.schedule import warmup_cosine
from examples.quickstart.settings import Settings
from examples.quickstart.tokenizer import WordTokenizer
from tests.support.quickstart import TINY, interrupt_in_step, split_of


@pytest.mark.parametrize("head", ["muse", "mean_pool", "temporal_transformer"])
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    head: str,
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: Callable[[int], None],
) -> None:
    threads(1)  # beside other tests there may be fewer of several
    settings = replace(TINY, head=head)
    monkeypatch.setattr(train, "CHECKPOINT_EVERY", 2)
    monkeypatch.setattr(train, "VALIDATE_EVERY", 3)
    splits = material.splits["train"], material.splits["validation"]
    straight = train.train(settings, *splits, tmp_path / "straight.pt", progress=False)
    with monkeypatch.context() as patch:
        interrupt_in_step(patch, 6)  # two steps behind the last checkpoint but one
        with pytest.raises(KeyboardInterrupt):
            train.train(settings, *splits, tmp_path / "resumed.pt", progress=False)
    torch.manual_seed(123)  # another process would have another random state
    resumed = train.train(settings, *splits, tmp_path / "resumed.pt", progress=False)

    assert resumed.losses == straight.losses
    assert resumed.validation == straight.validation
    wanted, state = straight.model.state_dict(), resumed.model.state_dict()
    assert wanted.keys() == state.keys()
    assert [name for name in wanted if not torch.equal(wanted[name], state[name])] == []
    initial = build_model(settings, straight.tokenizer).state_dict()
    assert any(not torch.equal(initial[name], state[name]) for name in state)


def test_threads_that_were_given_up_come_back_after_the_training(
    material: Material,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads: Callable[[int], None],
) -> None:
    threads(2)
    original = train.train_step
    seen = []

    def step(*arguments: object) -> float:
        seen.append(torch.get_num_threads())
        torch.set_num_threads(1)
        return original(*arguments)

    monkeypatch.setattr(train, "train_step", step)
    splits = material.splits["train"], material.splits["validation"]
    settings = replace(TINY, head="mean_pool", steps=2)
    train.train(settings, *splits, tmp_path / "done.pt", progress=False)
    assert seen == [2, 1] and torch.get_num_threads() == 2


@pytest.mark.slow(seconds=15)
def test_training_learns_order_too(tmp_path: Path) -> None:
    """Twelve clips by heart: each caption finds its clip, beside the reversal of that clip."""
    # In few frames a batch, and at a higher rate, this takes a third of the default's time.
    settings = Settings(steps=80, lr=1.5e-3, batch_size=12, num_frames=4)
    sizes = {"train": 12, "validation": 4, "test": 4}
    material = load_material(tmp_path, num_frames=4, size=32, corpus_sizes=sizes, progress=False)
    training, validation = material.splits["train"], material.splits["validation"]
    run = train.train(settings, training, validation, tmp_path / "checkpoint.pt", progress=False)
    result = evaluate(run.model, run.tokenizer, training)
    assert result["t2v"]["R@1"] >= 95 and result["v2t"]["R@1"] >= 95, result
    assert result["pair_preference"] >= 95, result


@pytest.mark.parametrize(
    ("video", "caption"),
    [([4, 4, 7], [0, 1, 2]), ([4, 5, 7], [1, 1, 2])],
    ids=["two captions of a video", "a caption of two videos"],
)
def test_rows_that_belong_together_are_no_negatives(video: list[int], caption: list[int]) -> None:
    logits = torch.tensor([[1.0, 5.0, 0.0], [2.0, 1.0, 0.5], [0.0, 3.0, 2.0]])
    rows = -torch.tensor([
        math.log(math.e / (math.e + 1)),
        math.log(math.exp(1) / (math.exp(1) + math.exp(0.5))),
        math.log(math.exp(2) / (1 + math.exp(3) + math.exp(2))),
    ])  # fmt: skip
    columns = -torch.tensor([
        math.log(math.e / (math.e + 1)),
        math.log(math.exp(1) / (math.exp(1) + math.exp(3))),
        math.log(math.exp(2) / (1 + math.exp(0.5) + math.exp(2))),
    ])  # fmt: skip
    wanted = 0.5 * (rows.mean() + columns.mean())
    loss = batch_loss(logits, torch.tensor(video), torch.tensor(caption))
    torch.testing.assert_close(loss, wanted)


def test_each_epoch_is_another_order_of_all_clips() -> None:
    settings = Settings(batch_size=4, seed=3)
    groups = [[0, 1], [2, 3], [4, 5], [6, 7], [8], [9], [10], [11]]
    steps = [batch_of(step, groups, settings) for step in range(6)]
    epochs = [torch.cat(steps[:3]), torch.cat(steps[3:])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(12))
    assert not torch.equal(*epochs)
    assert len(batch_of(0, [[0], [1], [2]], settings)) == 3  # fewer clips than a batch


def test_a_clip_and_its_reversal_share_a_batch() -> None:
    clips = [("a", "B"), ("x", None), ("b", "a"), ("B", "a"), ("y", "not here"), ("z", "z")]
    split = split_of(*[(id, f"{id}.mp4", reversal) for id, reversal in clips])
    groups = TrainingSet.of(split, WordTokenizer([], max_words=4)).groups
    assert groups == [[0, 3], [1], [2], [4], [5]]
    pairs = [[2 * i, 2 * i + 1] for i in range(10)]
    for step in range(20):
        batch = set(batch_of(step, pairs, Settings(batch_size=4)).tolist())
        assert len(batch) == 4 and all((row ^ 1) in batch for row in batch)


def test_learning_rate_rises_then_falls() -> None:
    rates = [warmup_cosine(step, 100, Settings().warmup) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1 and rates[55] == pytest.approx(0.5) and rates[99] < 1e-3
    assert all(a > b for a, b in pairwise(rates[10:]))
