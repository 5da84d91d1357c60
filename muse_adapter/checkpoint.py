"""Saving and loading of heads: our own files, and state dicts with the official names."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from muse_adapter.config import MuseConfig
from muse_adapter.config.base import JsonConfig
from muse_adapter.files import import_safetensors, write_whole

Config = TypeVar("Config", bound=JsonConfig)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_PURPOSE = "saving and loading heads"

_HUB_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_HUB_PART}/{_HUB_PART}")

# Start of a parameter name -> start of its official name; the rest is the same in both.
_OFFICIAL_NAMES = (
    (re.compile(r"^layers\.(\d+)\.norm\."), r"MS_mamba.\1.layer_norm1."),
    (re.compile(r"^layers\.(\d+)\.mixer\."), r"MS_mamba.\1.mamba."),
    (re.compile(r"^layers\.(\d+)\.fc\."), r"MS_mamba.\1.temporal_fc."),
    (re.compile(r"^pyramid\.stages\."), "mamba_stages."),
)


def save_pretrained(head: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Save the weights and the config of a head, as `model.safetensors` and `config.json`.

    The files are written atomically: after a crash, the folder contains no incomplete file.

    Args:
        head: Module with a `MuseConfig` or `MamFusionConfig` as its `config`.
        folder: Created if needed; existing files of the two names are replaced.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The folder cannot be created or written.
        TypeError: `head` has no config.
    """
    config = getattr(head, "config", None)
    if not isinstance(config, JsonConfig):
        raise TypeError(
            "save_pretrained needs a model with its MuseConfig or MamFusionConfig as config (the "
            f"bare model, not a wrapper around it), got {type(head).__name__}"
        )
    # Copies, since safetensors refuses tensors that share memory or are not contiguous.
    state = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in head.state_dict().items()
    }
    safetensors = import_safetensors(_PURPOSE)
    target = Path(folder)
    contents = {
        target / WEIGHTS_NAME: safetensors.torch.save(state, metadata={"format": "pt"}),
        target / CONFIG_NAME: config.to_json().encode(),
    }
    try:
        target.mkdir(parents=True, exist_ok=True)
        write_whole(contents)
    except OSError as error:
        raise OSError(f"cannot write the head to {str(target)!r}: {error}") from error


def load_pretrained(
    name: str | os.PathLike[str],
    config_type: type[Config] = MuseConfig,  # type: ignore[assignment]
) -> tuple[Config, dict[str, Tensor]]:
    """Load the config and the weights that `save_pretrained` saved.

    Args:
        name: A folder, or `owner/name` of a model on the Hugging Face hub.
        config_type: Class of the config.

    Returns:
        The config, and the state dict on the CPU, in the dtypes in which it was saved.

    Raises:
        FileNotFoundError: `name` is neither a folder nor `owner/name`, or a file is missing.
        ImportError: safetensors (or, for the hub, huggingface_hub) is not installed.
        OSError: The hub does not provide the model.
        ValueError: A file is damaged or of another format, or the config is invalid or newer than
            this package.
    """
    safetensors = import_safetensors(_PURPOSE)
    folder = _local_folder(name)
    for file_name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / file_name).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} must contain {CONFIG_NAME} and {WEIGHTS_NAME}, "
                f"found no {file_name}"
            )
    try:
        config = config_type.from_json((folder / CONFIG_NAME).read_text(encoding="utf-8"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot use {str(folder / CONFIG_NAME)!r}: {error}") from error
    try:
        state = safetensors.torch.load_file(folder / WEIGHTS_NAME)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{str(folder / WEIGHTS_NAME)!r} is truncated or not a safetensors file: {error}"
        ) from error
    return config, state


def load_strict(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Load a state dict completely or not at all.

    Args:
        head: The module; values are cast to the dtypes of its parameters.
        state_dict: One tensor of the right shape for each name in the head's state dict.

    Raises:
        ValueError: Names are missing or unexpected, or values do not fit (all are listed). The head
            is unchanged.
    """
    _raise_mismatches(_mismatches(head.state_dict(), state_dict))
    head.load_state_dict(state_dict)


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


def _local_folder(name: str | os.PathLike[str]) -> Path:
    folder = Path(name)
    if name and folder.is_dir():  # Path("") is the current folder
        return folder
    if isinstance(name, str) and not folder.exists() and _HUB_ID.fullmatch(name):
        return _hub_folder(name)
    found = "a file" if folder.is_file() else "neither"
    raise FileNotFoundError(
        f"expected an existing folder or a hub id 'owner/name', got {str(name)!r}, which is {found}"
    )


def _hub_folder(name: str) -> Path:
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"{name!r} is not a local folder, and loading it from the hub needs huggingface_hub: "
            "pip install 'muse-adapter[hub]'"
        ) from error
    try:
        # One call for both files, so that they have the same revision.
        path = huggingface_hub.snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME])
    except Exception as error:  # its errors have no common class across versions
        raise OSError(
            f"{name!r} is not a local folder, and the hub does not provide it: {error}"
        ) from error
    return Path(path)


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
    return missing + unexpected + invalid


def _raise_mismatches(problems: list[str]) -> None:
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"the state dict does not fit the head ({len(problems)} problems):{lines}")


def _official_name(name: str) -> str:
    for pattern, replacement in _OFFICIAL_NAMES:
        name = pattern.sub(replacement, name)
    return name
