"""Strict loading of state dicts: everything fits, or nothing changes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from torch import Tensor, nn


def check_fits(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Check that a state dict is that of a head, which may be without memory (device meta).

    Raises:
        ValueError: As `load_strict`.
    """
    _raise_mismatches(_mismatches(head.state_dict(), state_dict))


def load_strict(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict completely or not at all.

    Args:
        head: The module; values are cast to the dtypes of its parameters.
        state_dict: One tensor of the right shape for each name in the head's state dict.

    Raises:
        ValueError: Names are missing or unexpected, or values do not fit (all are listed). The head
            is unchanged.
    """
    check_fits(head, state_dict)
    head.load_state_dict(state_dict)


def without_wrappers(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Remove the prefixes `module.` that wrappers give to names.

    Returns:
        The state dict, and a line for each name that is there with and without the prefix.
    """
    bare: dict[str, Tensor] = {}
    problems = []
    for full_name, value in state_dict.items():
        name = re.sub(r"^(module\.)+", "", full_name)
        if name in bare:
            problems.append(f"duplicate {name}: with and without the prefix 'module.'")
        bare[name] = value
    return bare, problems


def convert_names(
    head: nn.Module,
    official: Mapping[str, Tensor],
    names: Mapping[str, str],
    problems: Sequence[str] = (),
) -> dict[str, Tensor]:
    """Convert a state dict with other names to a complete one of a head.

    Args:
        head: It gives the values of what has no name in `names`.
        official: One tensor of the right shape for each of the other names.
        names: The other name of each of ours.
        problems: Found before, to be listed with the rest.

    Returns:
        The state dict of the head.

    Raises:
        ValueError: Names are missing or unexpected, or values do not fit, by the names of
            `official` (all are listed).
    """
    ours = head.state_dict()
    expected = {other: ours[name] for name, other in names.items()}
    _raise_mismatches([*problems, *_mismatches(expected, official)])
    return {**ours, **{name: official[other] for name, other in names.items()}}


def _mismatches(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [f"missing {name}" for name in expected if name not in given]
    unexpected = [f"unexpected {name}" for name in given if name not in expected]
    invalid = []
    for name, tensor in expected.items():
        value = given.get(name, tensor)
        if not isinstance(value, Tensor):
            invalid.append(f"{name} must be a tensor, got {type(value).__name__}")
        elif value.shape != tensor.shape:
            shapes = tuple(tensor.shape), tuple(value.shape)
            invalid.append(f"{name} must have shape {shapes[0]}, got {shapes[1]}")
        elif value.is_floating_point() != tensor.is_floating_point():
            invalid.append(f"{name} must be of a type like {tensor.dtype}, got {value.dtype}")
        elif name in given and not value.isfinite().all():
            invalid.append(f"{name} must be finite, got NaN or infinity")
    return missing + unexpected + invalid


def _raise_mismatches(problems: list[str]) -> None:
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"the state dict does not fit the head ({len(problems)} problems):{lines}")
