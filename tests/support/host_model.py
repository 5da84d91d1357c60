"""A small model with a backbone, a head and other parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba

CONFIG = MuseConfig(dim=8, in_dim=6, scales=(0.5, 2), depth=2)


class HostModel(nn.Module):
    """Backbone, head and more, with names that would mislead a comparison of substrings."""

    def __init__(self) -> None:
        super().__init__()
        self.clip_mamba_head = MultiScaleMamba(CONFIG)
        self.clip = nn.Sequential(nn.Conv2d(3, 6, 2), nn.BatchNorm2d(6), nn.Linear(6, 6))
        self.unbiased = nn.Linear(6, 8)
        self.logit_scale = nn.Parameter(torch.zeros(()))


def names_by_group(model: nn.Module, groups: list[dict[str, Any]]) -> dict[str, set[str]]:
    """Name the parameters of each group."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {group["name"]: {names[id(p)] for p in group["params"]} for group in groups}
