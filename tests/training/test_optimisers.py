"""The optimisers that `param_groups` drives: torch's with a schedule, CLIP4Clip's BertAdam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from muse_adapter.training.optim import param_groups
from tests.support.bert_adam import BertAdam
from tests.support.golden import Golden
from tests.support.host_model import HostModel


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop],
    ids=lambda optimizer: optimizer.__name__,
)
def test_torch_optimisers_with_a_schedule(optimizer: Callable[..., Any]) -> None:
    model = HostModel()
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
    # The backbone hardly moves at 1e-7, so the updates are compared too. Both are differences of
    # numbers of the size of the start, whose rounding is the absolute bound.
    for name, parameter in model.named_parameters():
        update = run.stored(f"after.{step}.{name}") - start[name]
        rounding = 2 * torch.finfo(update.dtype).eps * start[name].abs().max().item()
        torch.testing.assert_close(
            parameter.detach() - start[name], update, rtol=1e-6, atol=rounding
        )
