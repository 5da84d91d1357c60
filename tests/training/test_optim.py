"""param_groups: who is in which group, what is decayed, and the optimisers it drives."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba
from muse_adapter.training.optim import param_groups
from tests.conftest import Golden
from tests.support.bert_adam import BertAdam

CONFIG = MuseConfig(dim=8, in_dim=6, scales=(0.5, 2), depth=2)


class Host(nn.Module):
    """A small model with a backbone, a head and something else, named to mislead substrings."""

    def __init__(self, head: nn.Module | None = None) -> None:
        super().__init__()
        self.clip_mamba_head = MultiScaleMamba(CONFIG) if head is None else head
        self.clip = nn.Sequential(nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.Linear(6, 6))
        self.unbiased = nn.Linear(6, 8)
        self.logit_scale = nn.Parameter(torch.zeros(()))


def names_by_group(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}


def assert_each_once(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in model.parameters() if p.requires_grad}


def test_groups_of_a_whole_model() -> None:
    model = Host()
    groups = param_groups(model, model.clip_mamba_head, backbone=model.clip)
    assert_each_once(model, groups)
    assert [(g["name"], g["lr"], g["weight_decay"]) for g in groups] == [
        ("head.decay", pytest.approx(1e-3), 0.2),
        ("head.no_decay", pytest.approx(1e-3), 0.0),
        ("backbone.decay", pytest.approx(1e-7), 0.2),
        ("backbone.no_decay", pytest.approx(1e-7), 0.0),
        ("rest.decay", 1e-4, 0.2),
        ("rest.no_decay", 1e-4, 0.0),
    ]
    names = names_by_group(model, groups)
    assert names["backbone.decay"] == {"clip.0.weight", "clip.2.weight"}
    assert names["backbone.no_decay"] == {
        "clip.0.bias",
        "clip.1.weight",
        "clip.1.bias",
        "clip.2.bias",
    }
    assert names["rest.decay"] == {"unbiased.weight"}
    assert names["rest.no_decay"] == {"unbiased.bias", "logit_scale"}


@pytest.mark.parametrize("mixer", ["bimamba", "mamba", "attention", "conv"])
def test_decay_in_the_head(mixer: str) -> None:
    head = MultiScaleMamba(CONFIG.__class__(**{**vars(CONFIG), "mixer": mixer}))
    names = names_by_group(head, param_groups(head, head))
    undecayed = {
        name
        for name, parameter in head.named_parameters()
        if parameter.dim() < 2 or name.split(".")[-1] in ("A_log", "A_b_log")
    }
    assert names == {
        "head.decay": {name for name, _ in head.named_parameters()} - undecayed,
        "head.no_decay": undecayed,
    }


def test_rates_and_decay_are_arguments() -> None:
    model = Host()
    groups = param_groups(
        model,
        model.clip_mamba_head,
        lr=0.5,
        head_lr_scale=3,
        backbone=model.clip,
        backbone_lr_scale=0.1,
        weight_decay=0.01,
    )
    assert {group["name"]: group["lr"] for group in groups} == {
        "head.decay": 1.5,
        "head.no_decay": 1.5,
        "backbone.decay": pytest.approx(0.05),
        "backbone.no_decay": pytest.approx(0.05),
        "rest.decay": 0.5,
        "rest.no_decay": 0.5,
    }
    assert {group["weight_decay"] for group in groups} == {0.01, 0.0}


def test_frozen_parameters_and_empty_groups_are_left_out() -> None:
    model = Host()
    model.clip.requires_grad_(False)
    model.clip_mamba_head.freeze_pyramid()
    model.unbiased.weight.requires_grad_(False)
    groups = param_groups(model, model.clip_mamba_head, backbone=model.clip)
    assert_each_once(model, groups)
    names = names_by_group(model, groups)
    assert list(names) == ["head.decay", "head.no_decay", "rest.no_decay"]
    assert not any("pyramid" in name for name in names["head.decay"] | names["head.no_decay"])


def test_shared_parameters_are_in_one_group() -> None:
    model = Host()
    model.twin = nn.Linear(6, 8, bias=False)
    model.twin.weight = model.unbiased.weight
    # Shared between backbone and head without either inside the other: the head's rate.
    model.clip[2].weight = model.clip_mamba_head.layers[0].mixer.x_proj.weight
    groups = param_groups(model, model.clip_mamba_head, backbone=model.clip)
    assert_each_once(model, groups)
    assert (
        "clip_mamba_head.layers.0.mixer.x_proj.weight"
        in names_by_group(model, groups)["head.decay"]
    )


class Nested(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.own = inner, nn.Linear(2, 2, bias=False)


@pytest.mark.parametrize(
    ("head_is_inner", "wanted"),
    [
        (True, {"head.decay": {"inner.weight"}, "backbone.decay": {"own.weight"}}),
        (False, {"head.decay": {"own.weight"}, "backbone.decay": {"inner.weight"}}),
    ],
    ids=["head inside the backbone", "backbone inside the head"],
)
def test_the_inner_module_has_its_own_rate(head_is_inner: bool, wanted: dict) -> None:
    outer = Nested(nn.Linear(2, 2, bias=False))
    head, backbone = (outer.inner, outer) if head_is_inner else (outer, outer.inner)
    assert names_by_group(outer, param_groups(outer, head, backbone=backbone)) == wanted


class Listing(nn.Module):
    """A host that lists names as timm's models do, one of them absent."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(torch.zeros(1, 4, 2))
        self.block = nn.Linear(2, 2)

    def no_weight_decay(self) -> set[str]:
        return {"pos_embed", "block.weight", "dist_token"}


class ListingTwin(Listing):
    """Lists a shared parameter by the second of its names."""

    def __init__(self) -> None:
        super().__init__()
        self.twin = self.block

    def no_weight_decay(self) -> set[str]:
        return {"twin.weight"}


class Marked(nn.Module):
    """Marks a parameter as mamba-ssm does."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.zeros(2, 2))
        self.state._no_weight_decay = True


class ForeignScan(nn.Module):
    """A scan without `no_weight_decay`, its D of two dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.A_log, self.D = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))


class OtherD(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.D = nn.Parameter(torch.zeros(2, 2))


class Bias2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(2, 2))


@pytest.mark.parametrize(
    ("make", "decayed"),
    [
        pytest.param(lambda: nn.LayerNorm([2, 3]), set(), id="layer norm over two axes"),
        pytest.param(lambda: nn.RMSNorm([2, 3]), set(), id="RMS norm over two axes"),
        pytest.param(lambda: nn.GroupNorm(1, 4), set(), id="group norm"),
        pytest.param(lambda: nn.InstanceNorm1d(4, affine=True), set(), id="instance norm"),
        pytest.param(Bias2D, set(), id="bias of two dimensions"),
        pytest.param(
            lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
            {"in_proj_weight", "out_proj.weight"},
            id="appended keys of attention",
        ),
        pytest.param(Listing, set(), id="no_weight_decay()"),
        pytest.param(
            lambda: nn.ModuleList([Listing(), nn.Linear(2, 2)]),
            {"1.weight"},
            id="no_weight_decay() of a submodule",
        ),
        pytest.param(ListingTwin, {"pos_embed"}, id="no_weight_decay() by a second name"),
        pytest.param(Marked, set(), id="_no_weight_decay"),
        pytest.param(ForeignScan, set(), id="scan of another package"),
        pytest.param(OtherD, {"D"}, id="a D that is no scan's"),
        pytest.param(
            lambda: nn.ModuleDict({"norm_bias_A_log": nn.Linear(2, 2)}),
            {"norm_bias_A_log.weight"},
            id="misleading module name",
        ),
    ],
)
def test_decayed(make: Callable[[], nn.Module], decayed: set[str]) -> None:
    part = make()
    names = names_by_group(part, param_groups(part, part))
    assert names.get("head.decay", set()) == decayed
    everything = {name for name, _ in part.named_parameters()}
    assert names.get("head.no_decay", set()) == everything - decayed


def test_same_module_registered_twice() -> None:
    model = Host()
    model.again = model.clip_mamba_head
    groups = param_groups(model, model.again)
    assert_each_once(model, groups)


def frozen(module: nn.Module) -> nn.Module:
    return module.requires_grad_(False)


LINEAR = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("model", "head", "arguments", "message"),
    [
        pytest.param(
            nn.Linear(3, 3),
            LINEAR,
            {},
            r"head \(Linear\) must be part of the model \(Linear\), got 2 of its 2 parameters",
            id="head outside",
        ),
        pytest.param(
            nn.Sequential(LINEAR),
            nn.Sequential(LINEAR, nn.Linear(2, 2)),
            {},
            "got 2 of its 4 parameters outside",
            id="head partly outside",
        ),
        pytest.param(
            LINEAR, nn.Identity(), {}, "head .Identity. must be part", id="empty, outside"
        ),
        pytest.param(
            LINEAR,
            LINEAR,
            {"backbone": nn.Linear(3, 3)},
            "backbone .Linear. must be part of the model",
            id="backbone outside",
        ),
        pytest.param(
            LINEAR, LINEAR, {"backbone": LINEAR}, "must be different", id="head is backbone"
        ),
        pytest.param(
            model := frozen(nn.Linear(2, 2)), model, {}, "must have a trainable", id="all frozen"
        ),
        pytest.param(model := nn.ReLU(), model, {}, "must have a trainable", id="no parameters"),
        pytest.param(LINEAR, LINEAR, {"lr": -1.0}, "lr must be finite and not neg", id="lr"),
        pytest.param(LINEAR, LINEAR, {"lr": math.nan}, "lr must be finite.*got nan", id="lr NaN"),
        pytest.param(
            LINEAR, LINEAR, {"head_lr_scale": math.inf}, "head_lr_scale must be finite", id="scale"
        ),
        pytest.param(
            LINEAR,
            LINEAR,
            {"backbone_lr_scale": -1},
            "backbone_lr_scale must be",
            id="negative scale",
        ),
        pytest.param(
            LINEAR, LINEAR, {"weight_decay": -0.2}, "weight_decay must be", id="negative decay"
        ),
    ],
)
def test_refuses(model: nn.Module, head: nn.Module, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        param_groups(model, head, **arguments)


def test_a_head_without_parameters_is_fine_inside_the_model() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Identity())
    names = names_by_group(model, param_groups(model, model[1]))
    assert names == {"rest.decay": {"0.weight"}, "rest.no_decay": {"0.bias"}}


def test_logs_the_groups_once(caplog: pytest.LogCaptureFixture) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False))
    with caplog.at_level(logging.INFO, logger="muse_adapter.training.optim"):
        param_groups(model, model[1])
    assert [record.getMessage() for record in caplog.records] == [
        "parameter groups: head.decay: 1 tensors, 4 values, lr 0.001, weight decay 0.2; "
        "rest.decay: 1 tensors, 6 values, lr 0.0001, weight decay 0.2; "
        "rest.no_decay: 1 tensors, 2 values, lr 0.0001, weight decay 0"
    ]


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop],
    ids=lambda optimizer: optimizer.__name__,
)
def test_torch_optimisers_with_a_schedule(optimizer: Callable[..., Any]) -> None:
    model = Host()
    groups = param_groups(model, model.clip_mamba_head, lr=1e-2, backbone=model.clip)
    peaks = [group["lr"] for group in groups]
    stepper = optimizer(groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(stepper, lambda step: 0.5**step)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    for step in range(3):
        rates = [group["lr"] for group in stepper.param_groups]
        assert rates == pytest.approx([peak * 0.5**step for peak in peaks])
        stepper.step()
        schedule.step()
    assert all(not torch.equal(before[name], p) for name, p in model.named_parameters())
    assert [group["name"] for group in stepper.state_dict()["param_groups"]] == [
        group["name"] for group in groups
    ]


class OfficialNames(nn.Module):
    """The three parameters of the golden run, in modules of their kinds."""

    def __init__(self, start: dict[str, Tensor]) -> None:
        super().__init__()
        self.clip = nn.Module()
        self.clip.w = nn.Parameter(start["clip.w"].clone())
        layer = nn.Module()
        layer.mamba = nn.Module()
        inputs, outputs = start["MS_mamba.0.mamba.in_proj.weight"].T.shape
        layer.mamba.in_proj = nn.Linear(inputs, outputs, bias=False).double()
        width = len(start["MS_mamba.0.temporal_fc.bias"])
        layer.temporal_fc = nn.Linear(width, width).double()
        del layer.temporal_fc.weight
        self.MS_mamba = nn.ModuleList([layer])
        self.load_state_dict(start)


def test_drives_bertadam_to_the_official_numbers(golden: Callable[[str], Golden]) -> None:
    run = golden("bertadam")
    number = {key: float(value) for key, value in run.meta.items() if value[0].isdigit()}
    start = {key[6:]: run.tensor(key) for key in run.keys("start.")}
    model = OfficialNames(start)
    groups = param_groups(
        model,
        model.MS_mamba,
        lr=number["lr"],
        head_lr_scale=number["mamba_multiplier"],
        backbone=model.clip,
        backbone_lr_scale=number["coef_lr"],
        weight_decay=number["weight_decay"],
    )
    optimizer = BertAdam(
        groups,
        number["lr"],
        warmup=number["warmup"],
        t_total=int(number["t_total"]),
        b1=number["b1"],
        b2=number["b2"],
        eps=number["eps"],
        weight_decay=number["weight_decay"],
        max_grad_norm=number["max_grad_norm"],
    )
    for step in range(int(number["steps"])):
        for name, parameter in model.named_parameters():
            parameter.grad = run.tensor(f"grad.{step}.{name}")
        nn.utils.clip_grad_norm_(model.parameters(), number["max_grad_norm"])
        optimizer.step()
        for name, parameter in model.named_parameters():
            run.check(f"after.{step}.{name}", parameter)
        rates = {optimizer.rate(group, step + 1) for group in optimizer.param_groups}
        assert sorted(rates) == pytest.approx(sorted(set(run.stored("get_lr")[step].tolist())))
    # The backbone hardly moves at 1e-7, so its way is compared too, not only where it is.
    for name, parameter in model.named_parameters():
        way = run.stored(f"after.{step}.{name}") - start[name]
        torch.testing.assert_close(parameter.detach() - start[name], way, rtol=1e-6, atol=0)
