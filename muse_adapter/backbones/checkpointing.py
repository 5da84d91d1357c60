"""Gradient checkpointing of backbones, under each library's name."""

from __future__ import annotations

from typing import Any


def set_grad_checkpointing(backbone: Any, enable: bool = True) -> None:
    """Recompute activations in the backward pass, where the backbone can.

    timm and open_clip models have `set_grad_checkpointing`, Hugging Face models
    `gradient_checkpointing_enable`; others are left as they are.
    """
    if hasattr(backbone, "set_grad_checkpointing"):
        backbone.set_grad_checkpointing(enable)
    elif getattr(backbone, "supports_gradient_checkpointing", False):
        # Recent transformers 5 deprecate the old name, earlier releases lack the new one.
        new = hasattr(backbone, "activation_checkpointing_enable")
        kind = "activation" if new else "gradient"
        getattr(backbone, f"{kind}_checkpointing_{'enable' if enable else 'disable'}")()
