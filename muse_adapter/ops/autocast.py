"""Autocast, kept out of what is computed in types of its own choice."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import torch


def without_autocast(device_type: str) -> AbstractContextManager[None]:
    """Inside the `with` block operations keep to the types of their inputs.

    Where autocast is off anyway nothing is entered: that costs time, and a node in every graph.
    """
    # Tensors without memory know no autocast, not even that it is off.
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return contextlib.nullcontext()
