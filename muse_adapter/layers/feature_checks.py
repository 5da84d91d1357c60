"""Checks of feature tensors and their masks, by the letters of their axes."""

from __future__ import annotations

import torch
from torch import Tensor

from muse_adapter.ops.checks import values_can_be_asked
from muse_adapter.ops.rows import RowKind


def check_features(**named: tuple[Tensor | RowKind | None, str]) -> dict[str, int]:
    """Check types and shapes of tensors that share axes.

    Args:
        **named: By the name that messages use, a tensor, or what rows are like, and the letters of
            its axes, such as `text=(text, "A D")`. A letter stands for one size. None is left out.

    Returns:
        The size of each letter.

    Raises:
        TypeError: One is not a floating-point tensor, or one is float64 and another is not: all are
            computed in float64, or all in float32.
        ValueError: One has another number of axes, a size 0, or another size than those before it.
    """
    sizes: dict[str, int] = {}
    for name, (tensor, axes) in named.items():
        if tensor is None:
            continue
        typed = isinstance(tensor, (Tensor, RowKind))
        if not typed or not tensor.dtype.is_floating_point:
            kind = tensor.dtype if typed else type(tensor).__name__
            raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
        letters, shape = axes.split(), tuple(tensor.shape)
        known = {letter: sizes[letter] for letter in letters if letter in sizes}
        fits = len(shape) == len(letters) and all(
            size > 0 and size == sizes.setdefault(letter, size)
            for letter, size in zip(letters, shape, strict=True)
        )
        if not fits:
            wanted = "".join(f", {letter} = {size}" for letter, size in known.items())
            raise ValueError(
                f"{name} must have shape ({', '.join(letters)}){wanted}, no size 0, got {shape}"
            )
    types = {name: tensor.dtype for name, (tensor, _) in named.items() if tensor is not None}
    if len({kind == torch.float64 for kind in types.values()}) > 1:
        listed = ", ".join(f"{name} {kind}" for name, kind in types.items())
        raise TypeError(f"features must all be float64, or none of them, got {listed}")
    return sizes


def check_mask(name: str, mask: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """Bring a mask to bool.

    Values are checked only on the CPU in eager mode: elsewhere this would synchronise the device or
    break the graph.

    Args:
        name: The name that messages use.
        mask: True or 1 for what is valid, or None.
        shape: The shape it must have.

    Returns:
        The mask as bool, or None.

    Raises:
        TypeError: The mask is not a tensor.
        ValueError: It has another shape, or values other than 0 and 1.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(mask).__name__}")
    if tuple(mask.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(mask.shape)}")
    valid = mask.to(torch.bool)
    if values_can_be_asked(mask) and not torch.equal(valid.to(mask.dtype), mask):
        raise ValueError(f"{name} must hold only 0 and 1 (or False and True)")
    return valid
