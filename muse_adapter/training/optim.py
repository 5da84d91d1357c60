"""Optimiser groups: head, backbone and the rest, each with and without weight decay."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from typing import Any

from torch import nn

logger = logging.getLogger(__name__)

# The norms whose parameters may have several dimensions; those of the others have one.
_NORMS = (nn.LayerNorm, nn.RMSNorm)
# Names in Mamba and Vim, for scans of other packages; ours name theirs in `no_weight_decay()`.
_SCAN_PARAMETERS = ("A_log", "A_b_log", "D", "D_b")


def param_groups(
    model: nn.Module,
    head: nn.Module,
    *,
    lr: float = 1e-4,
    head_lr_scale: float = 10.0,
    backbone: nn.Module | None = None,
    backbone_lr_scale: float = 1e-3,
    weight_decay: float = 0.2,
) -> list[dict[str, Any]]:
    """Sort the trainable parameters of a model into groups for an optimiser.

    Parameters are compared by identity, never by parts of their names; a parameter that several
    modules share is in one group. Not decayed are parameters of fewer than two dimensions, biases,
    parameters of normalisation layers, `A_log` and `D` of a scan (both directions), those that a
    submodule names in `no_weight_decay()`, and those marked `_no_weight_decay`.

    A parameter of both head and backbone belongs to the head, unless the backbone is a part of the
    head: then it belongs to the backbone, so that the inner module always has its own rate.

    Args:
        model: The whole model.
        head: The part of `model` with the learning rate `lr * head_lr_scale`.
        lr: Learning rate of the parameters in neither head nor backbone.
        head_lr_scale: Factor on `lr` for the head.
        backbone: The part of `model` with the learning rate `lr * backbone_lr_scale`, or None. The
            default factor suits a pretrained backbone; one trained from scratch hardly moves.
        backbone_lr_scale: Factor on `lr` for the backbone.
        weight_decay: Weight decay of the parameters that are decayed.

    Returns:
        Groups with `name`, `params` (in the order of the model), `lr` and `weight_decay`. The names
        are "head.decay", "head.no_decay", and the same of "backbone" and "rest", in this order;
        empty groups are left out.

    Raises:
        ValueError: Head or backbone are not part of the model or are the same module, no parameter
            is trainable, or a number is negative or not finite.
    """
    _check_numbers(
        lr=lr,
        head_lr_scale=head_lr_scale,
        backbone_lr_scale=backbone_lr_scale,
        weight_decay=weight_decay,
    )
    in_head = _ids_inside(model, head, "head")
    in_backbone = set() if backbone is None else _ids_inside(model, backbone, "backbone")
    if backbone is head:
        raise ValueError("head and backbone must be different modules, got the same one twice")
    backbone_wins = in_backbone < in_head

    rates = {"head": lr * head_lr_scale, "backbone": lr * backbone_lr_scale, "rest": lr}
    decays = {"decay": weight_decay, "no_decay": 0.0}
    groups: dict[str, dict[str, Any]] = {
        f"{part}.{kind}": {
            "name": f"{part}.{kind}",
            "params": [],
            "lr": rate,
            "weight_decay": decay,
        }
        for part, rate in rates.items()
        for kind, decay in decays.items()
    }
    undecayed = undecayed_ids(model)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        key = id(parameter)
        if key in in_backbone and (backbone_wins or key not in in_head):
            part = "backbone"
        else:
            part = "head" if key in in_head else "rest"
        kind = "no_decay" if key in undecayed else "decay"
        groups[f"{part}.{kind}"]["params"].append(parameter)

    used = [group for group in groups.values() if group["params"]]
    if not used:
        raise ValueError("the model must have a trainable parameter, got none")
    logger.info("parameter groups: %s", "; ".join(map(_describe, used)))
    return used


def undecayed_ids(model: nn.Module) -> set[int]:
    """Find the parameters that are not decayed, by the rules of `param_groups`.

    Args:
        model: The whole model.

    Returns:
        The `id` of each of them.
    """
    return set(_undecayed_ids(model))


def _undecayed_ids(model: nn.Module) -> Iterator[int]:
    for module in model.modules():
        own = dict(module.named_parameters(recurse=False))
        for name, parameter in own.items():
            if (
                parameter.dim() < 2
                or name == "bias"
                or isinstance(module, _NORMS)
                or ("A_log" in own and name in _SCAN_PARAMETERS)
                # The keys that nn.MultiheadAttention appends have three dimensions.
                or (isinstance(module, nn.MultiheadAttention) and name in ("bias_k", "bias_v"))
                or getattr(parameter, "_no_weight_decay", False)
            ):
                yield id(parameter)
        listed = getattr(module, "no_weight_decay", None)
        if callable(listed):
            inside = dict(module.named_parameters(remove_duplicate=False))
            # timm lists the names of all variants of a model, so some of them may not exist.
            yield from (id(inside[name]) for name in listed() if name in inside)


def _ids_inside(model: nn.Module, part: nn.Module, role: str) -> set[int]:
    ids = {id(parameter) for parameter in part.parameters()}
    known = {id(parameter) for parameter in model.parameters()}
    if not ids <= known or not (ids or any(module is part for module in model.modules())):
        raise ValueError(
            f"the {role} ({type(part).__name__}) must be part of the model "
            f"({type(model).__name__}), got {len(ids - known)} of its {len(ids)} parameters outside"
        )
    return ids


def _check_numbers(**numbers: float) -> None:
    for name, value in numbers.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be finite and not negative, got {value}")


def _describe(group: dict[str, Any]) -> str:
    size = sum(parameter.numel() for parameter in group["params"])
    return (
        f"{group['name']}: {len(group['params'])} tensors, {size} values, lr {group['lr']:g}, "
        f"weight decay {group['weight_decay']:g}"
    )
