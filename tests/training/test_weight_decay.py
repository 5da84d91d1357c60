"""Which parameters are decayed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn

from muse_adapter.config import MIXERS
from muse_adapter.models.muse import MultiScaleMamba
from muse_adapter.training.optim import param_groups
from tests.support.host_model import CONFIG, names_by_group


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


@pytest.mark.parametrize("mixer", MIXERS)
def test_decay_in_the_head(mixer: str) -> None:
    head = MultiScaleMamba(dataclasses.replace(CONFIG, mixer=mixer))
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
