"""A small head on disk, and exact comparison of state dicts."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from muse_adapter.checkpoint import WEIGHTS_NAME, save_pretrained
from muse_adapter.config import MuseConfig
from muse_adapter.models.muse import MultiScaleMamba

CONFIG = MuseConfig(dim=8, scales=(0.5, 2.0), depth=2, d_state=4)


def randomised(head: nn.Module) -> nn.Module:
    """Give every parameter values that no initialisation gives."""
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.normal_()
    return head


def copy_of(head: nn.Module) -> dict[str, Tensor]:
    """Copy the state dict."""
    return {name: value.clone() for name, value in head.state_dict().items()}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Assert that the state dicts have the same names in the same order and the same values."""
    assert list(got) == list(expected)
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def save_head(folder: Path) -> Path:
    """Save a randomised head with `CONFIG`."""
    save_pretrained(randomised(MultiScaleMamba(CONFIG)), folder)
    return folder


def as_first_release(folder: Path) -> Path:
    """Rewrite the weights of a saved head as the first release did: without config and checksum."""
    import safetensors.torch

    path = folder / WEIGHTS_NAME
    state = {name: value.clone() for name, value in safetensors.torch.load_file(path).items()}
    safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    return folder
