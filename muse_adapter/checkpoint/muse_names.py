"""State dicts with the names of the official MUSE code."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping

from torch import Tensor, nn

from muse_adapter.checkpoint.state_dicts import convert_names, without_wrappers

# Start of a parameter name -> start of its official name; the rest is the same in both.
_OFFICIAL_NAMES = (
    (re.compile(r"^layers\.(\d+)\.norm\."), r"MS_mamba.\1.layer_norm1."),
    (re.compile(r"^layers\.(\d+)\.mixer\."), r"MS_mamba.\1.mamba."),
    (re.compile(r"^layers\.(\d+)\.fc\."), r"MS_mamba.\1.temporal_fc."),
    (re.compile(r"^pyramid\.stages\."), "mamba_stages."),
)


def load_muse_state_dict(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a head from a state dict with the names of the official MUSE code.

    `MS_mamba.{i}.*` are the layers and `mamba_stages.{s}.{position}.*` the pyramid, after any
    number of `module.` prefixes; other names belong to the rest of the model and are ignored.
    Official checkpoints have no pyramid, since that code never registers it: if all of it is
    missing, the pyramid of the head stays as it is, with a warning.

    Args:
        head: A head without input projection; values are cast to the dtypes of its parameters.
        state_dict: The state dict of the whole official model, in any floating dtype.

    Raises:
        ValueError: The head has an input projection, or names are missing, unexpected or duplicate,
            or values do not fit (all are listed). The head is unchanged.
    """
    head.load_state_dict(convert_official(head, state_dict))


def is_official(name: str) -> bool:
    """Return whether a name of a state dict is of the head, by the names of the official code."""
    return re.match(r"(module\.)*(MS_mamba|mamba_stages)\.", name) is not None


def convert_official(head: nn.Module, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Convert a state dict of the official code to a complete one of a head.

    Args:
        head: A head without input projection; it gives what official checkpoints lack.
        state_dict: As for `load_muse_state_dict`.

    Returns:
        The state dict of the head, with the values of `state_dict`.

    Raises:
        ValueError: As `load_muse_state_dict`.
    """
    ours = head.state_dict()
    if any(name.startswith("proj.") for name in ours):
        raise ValueError(
            "the official model has no input projection, so the head must have none "
            "(in_dim None or equal to dim)"
        )
    official, problems = without_wrappers(
        {name: value for name, value in state_dict.items() if is_official(name)}
    )
    if not any(name.startswith("MS_mamba.") for name in official):
        raise ValueError(
            f"the state dict must have the layers as MS_mamba.*, got {len(state_dict)} names "
            f"without one, such as {', '.join(map(repr, list(state_dict)[:3])) or 'none'}"
        )
    has_pyramid = any(name.startswith("mamba_stages.") for name in official)
    names = {
        name: _official_name(name)
        for name in ours
        if has_pyramid or not name.startswith("pyramid.")
    }
    converted = convert_names(head, official, names, problems)
    if not has_pyramid:
        warnings.warn(
            "the state dict has no pyramid (mamba_stages.*), since the official code never saves "
            "it: the layers are loaded, and the head's pyramid stays as it was",
            stacklevel=3,
        )
    return converted


def _official_name(name: str) -> str:
    for pattern, replacement in _OFFICIAL_NAMES:
        name = pattern.sub(replacement, name)
    return name
