"""Training a patched host: losses, optimizer groups, padding, command line, frozen pyramid."""

from __future__ import annotations

import copy
import logging
import math

import pytest
import torch
from torch import nn

from tests.support.host_runs import SMALL, run, same
from tests.support.hosts import DIM, Session, make_batch

pytestmark = pytest.mark.usefixtures("torch_scan")


def test_loss_falls_and_everything_is_trained(patched: Session) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    head = model.muse
    assert head.config.dim == DIM
    assert head.config.depth == 2
    assert {p.dtype for p in head.parameters()} == {torch.float32}
    start = copy.deepcopy(head.state_dict())
    losses = patched.train(model, patched.optimizer(args, model, 20), [make_batch(0)] * 12)
    assert losses[-1] < losses[0]
    assert not [
        name for name, value in head.state_dict().items() if torch.equal(value, start[name])
    ]


def test_optimizer_groups_and_rates(patched: Session, caplog: pytest.LogCaptureFixture) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    with caplog.at_level(logging.INFO, logger="muse_adapter"):
        optimizer = patched.optimizer(args, model, steps=20)
    logged = [r.getMessage() for r in caplog.records if "optimizer group" in r.getMessage()]
    assert len(logged) == len(optimizer.param_groups)
    assert any("muse.decay" in line and "lr 0.01," in line for line in logged)

    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decays = {}
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            assert name not in decays, f"{name} is in two groups"
            decays[name] = group["weight_decay"]
            if name.startswith("muse."):
                assert group["lr"] == pytest.approx(10 * args.lr)
                assert group["name"] in ("muse.decay", "muse.no_decay")
    modules = dict(model.named_modules())
    for name in (name for name in decays if name.startswith("muse.")):
        owner, _, leaf = name.rpartition(".")
        undecayed = leaf in ("bias", "A_log", "A_b_log", "D", "D_b")
        undecayed = undecayed or isinstance(modules[owner], nn.LayerNorm)
        assert decays[name] == (0.0 if undecayed else 0.2), name

    # Read right after each step: the real hosts report no rate for parameters without gradient.
    rates: list[float] = []
    optimizer.register_step_post_hook(lambda *_: rates.append(max(optimizer.get_lr())))
    patched.train(model, optimizer, [make_batch(0), make_batch(1)])
    # After 1 and 2 of 20 steps, 2 of them warm-up: half the rate, and a point of the cosine.
    head_rate = 10 * args.lr
    cosine = 0.5 * (1 + math.cos(0.1 * math.pi))
    assert rates == pytest.approx([0.5 * head_rate, cosine * head_rate])


def test_padding_and_missing_videos(patched: Session) -> None:
    args = patched.args(*SMALL)
    model = patched.build(args)
    batch = make_batch(0, frames=(4, 0, 1))
    losses = patched.train(model, patched.optimizer(args, model), [batch] * 4)
    assert torch.isfinite(torch.tensor(losses)).all()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert torch.isfinite(patched.similarity(model, make_batch(1, frames=(0, 0, 2)))).all()


def test_the_published_command_line(patched: Session) -> None:
    option = run(patched, *SMALL)
    alias = run(patched, "--sim_header", "MUSE", *SMALL[1:])
    for key, value in option.items():
        assert same(value, alias[key]), key


def test_reinitialised_weights_are_detected(patched: Session) -> None:
    model = patched.build(patched.args(*SMALL))
    model.apply(model.init_weights)
    with pytest.raises(RuntimeError, match=r"after the last self\.apply\(self\.init_weights\)"):
        patched.similarity(model, make_batch())


def test_frozen_pyramid_and_checkpointing(patched: Session) -> None:
    options = ("--muse_freeze_pyramid", "--muse_grad_checkpointing", "--muse_init", "release")
    args = patched.args(*SMALL, *options)
    model = patched.build(args)
    start = copy.deepcopy(model.muse.pyramid.state_dict())
    patched.train(model, patched.optimizer(args, model), [make_batch(0)] * 3)
    assert same(dict(model.muse.pyramid.state_dict()), dict(start))
    assert model.muse.grad_checkpointing
