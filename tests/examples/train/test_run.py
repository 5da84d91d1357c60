"""Whole runs on a small corpus: one process, two, and one that is killed and goes on."""

from __future__ import annotations

import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.training_corpus import launch, settings_of, start, weights

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("corpus")]

EXACT = {"rtol": 0.0, "atol": 0.0}
CLOSE = {"rtol": 0.0, "atol": 1e-6}  # sums of gradients in another order


@pytest.fixture(scope="module")
def uninterrupted(corpus: Path) -> tuple[Path, dict[str, Any]]:
    """The folder and the result of a run on one process."""
    from examples.train.settings import Execution

    folder = corpus / "uninterrupted"
    execution = Execution(output=folder, save_steps=2, progress=False, eval_batch_size=4)
    assert start((settings_of(corpus), execution, {})) == [0]
    return folder, json.loads((folder / "results.json").read_text())


def test_one_process(uninterrupted: tuple[Path, dict[str, Any]], corpus: Path) -> None:
    from examples.train.run import run
    from examples.train.settings import Execution
    from muse_adapter.sentence_transformers import load

    folder, result = uninterrupted
    assert result["steps"] == 8 and len(result["validation"]) == 2
    assert result["sizes"]["train"] == {"captions": 16, "videos": 8, "left_out": 0}
    best = max(result["validation"], key=lambda epoch: epoch["t2v_R@1"])
    step = {1.0: 4, 2.0: 8}[best["epoch"]]
    checkpoints = folder / "checkpoints"
    other = f"checkpoint-{6 if step == 8 else step}"
    assert {p.name for p in checkpoints.glob("checkpoint-*")} == {other, "checkpoint-8"}
    saved, kept = weights(folder / "best"), weights(checkpoints / f"checkpoint-{step}")
    assert all(torch.equal(saved[name], kept[name]) for name in saved)
    model = load(folder / "best", device="cpu")
    assert model.encode_query(["a red dog"]).shape == (1, 12)
    execution = Execution(output=folder, progress=False)
    assert run(settings_of(corpus), execution) == result
    with pytest.raises(ValueError, match=r"holds a run with lr 0\.001 and not 0\.1: use another"):
        run(settings_of(corpus, lr=0.1), execution)


def test_killed_and_resumed_equals_uninterrupted(
    uninterrupted: tuple[Path, dict[str, Any]], corpus: Path
) -> None:
    from examples.train.settings import Execution

    folder, result = uninterrupted
    killed = corpus / "killed"
    execution = Execution(output=killed, save_steps=2, progress=False, eval_batch_size=4)
    settings = settings_of(corpus)
    assert start((settings, execution, {}, 7)) == [-signal.SIGKILL]  # behind checkpoint-6
    assert not (killed / "results.json").exists()
    assert start((settings, execution, {})) == [0]
    resumed, whole = weights(killed / "last"), weights(folder / "last")
    for name, tensor in whole.items():
        torch.testing.assert_close(resumed[name], tensor, **EXACT, msg=name)
    assert json.loads((killed / "results.json").read_text()) == result


@pytest.mark.parametrize("objective", ["contrastive", "eercf"])
def test_two_processes_equal_one(objective: str, corpus: Path) -> None:
    from examples.train.settings import Execution

    settings = settings_of(corpus, dropout=0.0, epochs=1, lr=1e-4, objective=objective)
    one = Execution(output=corpus / f"one-{objective}", progress=False)
    two = replace(one, output=corpus / f"two-{objective}", processes=2)
    assert start((settings, one, {})) == [0]
    assert start(*((settings, two, rank) for rank in launch(2))) == [0, 0]
    alone, together = weights(one.output / "last"), weights(two.output / "last")
    for name, tensor in alone.items():
        # The exact gradient of a key's bias is 0: rounding decides where AdamW moves it, by the
        # learning rate at most.
        close = {"atol": settings.lr, "rtol": 0} if name.endswith("k_proj.bias") else CLOSE
        torch.testing.assert_close(together[name], tensor, **close, msg=lambda m, n=name: n + m)
    start_weights = weights_of_clip(corpus / "clip")
    moved = [(alone[name] - value).abs().max() for name, value in start_weights.items()]
    assert max(moved) > 1e-4
    assert json.loads((one.output / "results.json").read_text())["test"] == pytest.approx(
        json.loads((two.output / "results.json").read_text())["test"]
    )


def test_a_process_that_is_killed_while_it_writes_a_checkpoint(corpus: Path) -> None:
    """The others do not mark the checkpoint as complete: the run goes on from the one before."""
    from examples.train.checkpoints import last_checkpoint
    from examples.train.settings import Execution

    settings = settings_of(corpus, epochs=1)
    how = Execution(output=corpus / "half", save_steps=2, progress=False, processes=2)
    first, second = ((settings, how, rank) for rank in launch(2))
    codes = start(first, (*second, None, 4))
    assert codes[0] and codes[1] == -signal.SIGKILL
    checkpoints = how.output / "checkpoints"
    assert (checkpoints / "checkpoint-4" / "rng_state_1.pth").read_bytes() == b"PK"
    last = last_checkpoint(checkpoints, 2)
    assert last is not None and last.name == "checkpoint-2"
    assert start(*((settings, how, rank) for rank in launch(2))) == [0, 0]
    assert json.loads((how.output / "results.json").read_text())["steps"] == 4


def weights_of_clip(folder: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return {f"clip.{k}": v for k, v in load_file(folder / "model.safetensors").items()}


@pytest.mark.parametrize("objective", ["sigmoid", "video-colbert"])
def test_other_objectives(objective: str, corpus: Path) -> None:
    from examples.train.run import run
    from examples.train.settings import Execution

    execution = Execution(output=corpus / objective, progress=False, grad_checkpointing=True)
    settings = settings_of(corpus, objective=objective, epochs=1, validate=False, freeze=True)
    result = run(settings, execution)
    assert result["tested"] == "last" and result["validation"] == []
    assert result["sizes"]["train"]["videos"] == 8  # a CSV's own validation part is not trained on
    assert set(result["test"]) >= {"t2v_R@1", "v2t_MdR"}
