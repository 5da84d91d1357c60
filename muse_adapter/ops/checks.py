"""Shapes, types and devices of what an operator is given: kernels read and write by address."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.torch_private import in_func_transform


def values_can_be_asked(tensor: Tensor) -> bool:
    """Whether values may decide what runs: not on a GPU, in a trace, or inside `torch.func`.

    There it would wait for the device, break the graph, or have no single answer.
    """
    return (
        tensor.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not in_func_transform()
    )


def check_tensor(
    name: str,
    tensor: Tensor | None,
    shape: tuple[int, ...] | None,
    like: tuple[str, Any],
    *,
    integer: bool = False,
) -> None:
    """Refuse a tensor that does not fit.

    Args:
        name: How the caller calls it.
        tensor: The tensor; None passes.
        shape: The shape it must have; None: any.
        like: A name, and a tensor or the like, whose device it must be on.
        integer: Whether it holds integers; otherwise a real floating type is expected.

    Raises:
        ValueError: Another shape or device.
        TypeError: Another kind of type.
    """
    if tensor is None:
        return
    if shape is not None and tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(tensor.shape)}")
    if integer:
        # Others overflow in sums of lengths, or have no kernels in torch.
        if tensor.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"{name} must hold int32 or int64, got {tensor.dtype}")
    elif not tensor.is_floating_point():
        raise TypeError(f"{name} must be of a real floating type, got {tensor.dtype}")
    if tensor.device != like[1].device:
        raise ValueError(
            f"{name} must be on the device of {like[0]}, {like[1].device}, got {tensor.device}"
        )


def check_rank(name: str, tensor: Tensor, *axes: str) -> tuple[int, ...]:
    """Refuse a tensor with another number of axes.

    Args:
        name: How the caller calls it.
        tensor: The tensor.
        axes: A name for each axis, for the message.

    Returns:
        Its sizes.

    Raises:
        ValueError: Another number of axes.
    """
    if tensor.dim() != len(axes):
        raise ValueError(f"{name} must have shape ({', '.join(axes)}), got {tuple(tensor.shape)}")
    return tuple(tensor.shape)
