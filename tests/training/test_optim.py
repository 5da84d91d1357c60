"""Groups of `param_groups`: head, backbone and the rest, their rates, errors."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest
from torch import nn

from muse_adapter.training.optim import param_groups
from tests.support.host_model import HostModel, names_by_group


def assert_each_once(model: nn.Module, groups: list[dict[str, Any]]) -> None:
    given = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(given) == len(set(given))
    assert set(given) == {id(p) for p in model.parameters() if p.requires_grad}


def test_groups_of_a_whole_model() -> None:
    model = HostModel()
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


def test_rates_and_decay_are_arguments() -> None:
    model = HostModel()
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
    model = HostModel()
    model.clip.requires_grad_(False)
    model.clip_mamba_head.freeze_pyramid()
    model.unbiased.weight.requires_grad_(False)
    groups = param_groups(model, model.clip_mamba_head, backbone=model.clip)
    assert_each_once(model, groups)
    names = names_by_group(model, groups)
    assert list(names) == ["head.decay", "head.no_decay", "rest.no_decay"]
    assert not any("pyramid" in name for name in names["head.decay"] | names["head.no_decay"])


def test_shared_parameters_are_in_one_group() -> None:
    model = HostModel()
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
    ("head_is_inner", "expected"),
    [
        (True, {"head.decay": {"inner.weight"}, "backbone.decay": {"own.weight"}}),
        (False, {"head.decay": {"own.weight"}, "backbone.decay": {"inner.weight"}}),
    ],
    ids=["head inside the backbone", "backbone inside the head"],
)
def test_the_inner_module_has_its_own_rate(head_is_inner: bool, expected: dict) -> None:
    outer = Nested(nn.Linear(2, 2, bias=False))
    head, backbone = (outer.inner, outer) if head_is_inner else (outer, outer.inner)
    assert names_by_group(outer, param_groups(outer, head, backbone=backbone)) == expected


def test_same_module_registered_twice() -> None:
    model = HostModel()
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
