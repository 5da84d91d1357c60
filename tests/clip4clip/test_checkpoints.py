"""Checkpoints of patched hosts: resuming, and heads that differ or are missing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from muse_adapter import MultiScaleMamba
from tests.support.host_runs import SMALL, same, save_and_load, train
from tests.support.hosts import Session, make_batch

pytestmark = pytest.mark.usefixtures("torch_scan")


@pytest.fixture(scope="module")
def trained(patched: Session) -> tuple[Any, Any]:
    """Arguments and model of a short training run; tests do not change them."""
    args, model, _ = train(patched)
    return args, model


def test_checkpoint_with_another_seed(
    patched: Session, trained: tuple[Any, Any], tmp_path: Path
) -> None:
    args, model = trained
    other = patched.load(args, save_and_load(model.state_dict(), tmp_path), seed=5)
    expected = patched.similarity(model, make_batch(9))
    assert torch.equal(patched.similarity(other, make_batch(9)), expected)


def test_a_resumed_run_equals_the_uninterrupted_one(patched: Session, tmp_path: Path) -> None:
    args, model, optimizer = train(patched)
    assert args.muse_dropout > 0
    saved = save_and_load({"m": model.state_dict(), "o": optimizer.state_dict()}, tmp_path)
    later = [make_batch(seed) for seed in (3, 4, 5)]
    losses = patched.train(model, optimizer, later)

    resumed = patched.load(args, saved["m"], seed=0)
    again = patched.optimizer(args, resumed)
    again.load_state_dict(saved["o"])
    assert patched.train(resumed, again, later) == losses


def test_a_checkpoint_without_head_gives_the_same_similarity(
    patched: Session, tmp_path: Path
) -> None:
    args = patched.args()
    model = patched.build(args)
    patched.train(model, patched.optimizer(args, model), [make_batch(0)] * 2)
    with_head = patched.load(patched.args(*SMALL), save_and_load(model.state_dict(), tmp_path))
    expected = patched.similarity(model, make_batch(9))
    assert torch.equal(patched.similarity(with_head, make_batch(9)), expected)


def dropped(state: dict[str, Tensor], part: str) -> dict[str, Tensor]:
    return type(state)((name, value) for name, value in state.items() if part not in name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--muse_depth", "3"], r"muse\.layers\.2\.norm\.weight is missing"),
        (["--muse_d_state", "8"], r"muse\.layers\.0\.mixer\.A_log must have shape \(64, 8\), got"),
        (["--muse_scales", "1"], r"--muse_scales was \[0\.5, 1\.0\], is \[1\.0\]"),
        (["--muse_aggregation", "frame_wise"], "--muse_aggregation was 'scale_wise', is 'frame_"),
        ([], r"\(1 problems\):\n  muse\.layers\.1\.fc\.bias is missing"),
    ],
    ids=["depth", "state", "scales", "order", "partial"],
)
def test_a_different_head_raises(
    patched: Session,
    trained: tuple[Any, Any],
    options: list[str],
    message: str,
    tmp_path: Path,
) -> None:
    _, model = trained
    state = save_and_load(model.state_dict(), tmp_path)
    if not options:
        del state["muse.layers.1.fc.bias"]
    with pytest.raises(ValueError, match=message):
        patched.load(patched.args(*SMALL, *options), state)


def test_shapes_are_checked_without_metadata(patched: Session, trained: tuple[Any, Any]) -> None:
    _, model = trained
    plain = dict(model.state_dict())
    args = patched.args(*SMALL)
    assert same(dict(patched.load(args, dict(plain)).state_dict()), plain)
    with pytest.raises(ValueError, match=r"muse\.pyramid\.stages\.1\.0\.weight is missing"):
        patched.load(args, dropped(plain, "muse.pyramid"))


def test_a_checkpoint_with_a_head_needs_the_head(
    patched: Session, trained: tuple[Any, Any]
) -> None:
    _, model = trained
    with pytest.raises(ValueError, match=r"contains a MUSE head .* but --muse is not given"):
        patched.load(patched.args(), model.state_dict())


OFFICIAL = (
    (r"^muse\.layers\.(\d+)\.norm\.", r"MS_mamba.\1.layer_norm1."),
    (r"^muse\.layers\.(\d+)\.mixer\.", r"MS_mamba.\1.mamba."),
    (r"^muse\.layers\.(\d+)\.fc\.", r"MS_mamba.\1.temporal_fc."),
    (r"^muse\.pyramid\.stages\.", "mamba_stages."),
)


def official(state: dict[str, Tensor], pyramid: bool) -> dict[str, Tensor]:
    """Rename the head of a host's checkpoint as the official code names it."""
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for ours, theirs in OFFICIAL:
            name = re.sub(ours, theirs, name)
        if pyramid or not name.startswith("mamba_stages."):
            renamed[name] = value
    assert not any(name.startswith("muse.") for name in renamed)
    return renamed


def test_an_official_checkpoint_is_converted(patched: Session, trained: tuple[Any, Any]) -> None:
    args, model = trained
    loaded = patched.load(args, official(model.state_dict(), pyramid=True))
    assert same(dict(loaded.muse.state_dict()), dict(model.muse.state_dict()))
    expected = patched.similarity(model, make_batch(9))
    assert torch.equal(patched.similarity(loaded, make_batch(9)), expected)


def test_a_published_checkpoint_has_no_pyramid(patched: Session, trained: tuple[Any, Any]) -> None:
    args, model = trained
    state = official(model.state_dict(), pyramid=False)
    with pytest.warns(UserWarning, match="has no pyramid"):
        loaded = patched.load(args, state)
    layers = loaded.muse.layers.state_dict()
    assert same(dict(layers), dict(model.muse.layers.state_dict()))
    # torch's own loading takes the same way, and finds every name.
    with pytest.warns(UserWarning, match="has no pyramid"):
        patched.build(args).load_state_dict(official(model.state_dict(), pyramid=False))


@pytest.mark.parametrize(
    ("options", "change", "message"),
    [
        ([], {}, r"MUSE head \((mamba_stages|MS_mamba)\..* but --muse is not given"),
        ([*SMALL, "--muse_depth", "3"], {}, "missing MS_mamba.2.layer_norm1.weight"),
        (SMALL, {"muse.layers.0.fc.bias": torch.zeros(64)}, "contains two MUSE heads"),
    ],
    ids=["no head", "other depth", "two heads"],
)
def test_official_checkpoints_that_are_refused(
    patched: Session,
    trained: tuple[Any, Any],
    options: list[str],
    change: dict[str, Tensor],
    message: str,
) -> None:
    _, model = trained
    state = official(model.state_dict(), pyramid=True) | change
    with pytest.raises(ValueError, match=message):
        patched.load(patched.args(*options), state)


def test_the_head_can_be_saved_alone(trained: tuple[Any, Any], tmp_path: Path) -> None:
    pytest.importorskip("safetensors", reason="saving heads needs safetensors")
    _, model = trained
    model.muse.save_pretrained(tmp_path / "head")
    head = MultiScaleMamba.from_pretrained(tmp_path / "head")
    assert same(dict(head.state_dict()), dict(model.muse.state_dict()))
