"""Heads on disk: our own files, and state dicts with the names of the official code."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from muse_adapter.config import MuseConfig
from muse_adapter.files import import_safetensors, write_whole

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
_PURPOSE = "saving and loading heads"

_HUB_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_HUB_PART}/{_HUB_PART}")

# Beginning of an official name -> beginning of ours; what follows is the same in both.
_OFFICIAL_PARTS = (
    (re.compile(r"MS_mamba\.(\d+)\.layer_norm1\."), r"layers.\1.norm."),
    (re.compile(r"MS_mamba\.(\d+)\.mamba\."), r"layers.\1.mixer."),
    (re.compile(r"MS_mamba\.(\d+)\.temporal_fc\."), r"layers.\1.fc."),
    (re.compile(r"mamba_stages\.(\d+)\."), r"pyramid.stages.\1."),
)
_OUR_PARTS = (
    (re.compile(r"layers\.(\d+)\.norm\."), r"MS_mamba.\1.layer_norm1."),
    (re.compile(r"layers\.(\d+)\.mixer\."), r"MS_mamba.\1.mamba."),
    (re.compile(r"layers\.(\d+)\.fc\."), r"MS_mamba.\1.temporal_fc."),
    (re.compile(r"pyramid\.stages\.(\d+)\."), r"mamba_stages.\1."),
)


def save_pretrained(head: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Writes a head's weights and config to a folder, as `model.safetensors` and `config.json`.

    Both files are written beside their targets and renamed, so a crash leaves no half of a file.

    Args:
        head: Module with a `MuseConfig` as its `config`.
        folder: Made where it does not exist; files of the two names are replaced.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The folder cannot be made or written.
        TypeError: `head` has no config.
    """
    config = getattr(head, "config", None)
    if not isinstance(config, MuseConfig):
        raise TypeError(
            "save_pretrained needs a head with a MuseConfig as its config (the bare head, not a "
            f"wrapper around it), got {type(head).__name__}"
        )
    # Clones, since safetensors refuses tensors that share memory or are not contiguous.
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


def load_pretrained(name: str | os.PathLike[str]) -> tuple[MuseConfig, dict[str, Tensor]]:
    """Reads what `save_pretrained` wrote.

    Args:
        name: A folder, or `owner/name` of a model on the Hugging Face hub.

    Returns:
        The config, and the state dict on the CPU in the types in which it was saved.

    Raises:
        FileNotFoundError: `name` is neither a folder nor `owner/name`, or a file is missing.
        ImportError: safetensors (or, for the hub, huggingface_hub) is not installed.
        OSError: The hub does not give the model.
        ValueError: A file is damaged or of another kind, or the config is not for this version.
    """
    safetensors = import_safetensors(_PURPOSE)
    folder = _local_folder(name)
    for file_name in (CONFIG_NAME, WEIGHTS_NAME):
        if not (folder / file_name).is_file():
            raise FileNotFoundError(
                f"{str(folder)!r} must hold {CONFIG_NAME} and {WEIGHTS_NAME}, found no {file_name}"
            )
    try:
        config = MuseConfig.from_json((folder / CONFIG_NAME).read_text(encoding="utf-8"))
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
    """Loads a state dict with our names, all of it or nothing.

    Args:
        head: The module; values are cast to the types of its parameters.
        state_dict: A tensor of the right shape for each of the head's names, and no other.

    Raises:
        ValueError: Lists every name that is missing, unexpected or of another shape. The head is
            unchanged.
    """
    _raise_mismatches(_mismatches(head.state_dict(), state_dict))
    head.load_state_dict(state_dict)


def load_muse_state_dict(head: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads the head's part of a state dict that has the names of the official MUSE code.

    `MS_mamba.{i}.*` are the layers and `mamba_stages.{s}.{position}.*` the pyramid, both behind any
    number of `module.` prefixes; other names belong to the rest of the model and are ignored.
    Official checkpoints hold no pyramid, since that code never registers it: if all of it is
    absent, the pyramid of the head stays as it is and a warning says so.

    Args:
        head: A head without input projection; values are cast to the types of its parameters.
        state_dict: The state dict of the whole official model, in any floating type.

    Raises:
        ValueError: The head has an input projection, or names are missing, unexpected, double or of
            another shape (all are listed). The head is unchanged.
    """
    ours = head.state_dict()
    if any(name.startswith("proj.") for name in ours):
        raise ValueError(
            "the official model has no input projection, so the head must have none "
            "(in_dim None or equal to dim)"
        )
    official: dict[str, Tensor] = {}
    problems: list[str] = []
    for full_name, value in state_dict.items():
        name = re.sub(r"^(module\.)+", "", full_name)
        if not name.startswith(("MS_mamba.", "mamba_stages.")):
            continue
        if name in official:
            problems.append(f"double {name}: with and without 'module.' before it")
        official[name] = value
    if not any(name.startswith("MS_mamba.") for name in official):
        raise ValueError(
            f"the state dict must hold the layers as MS_mamba.*, got {len(state_dict)} names "
            f"without one, such as {', '.join(map(repr, list(state_dict)[:3])) or 'none'}"
        )
    has_pyramid = any(name.startswith("mamba_stages.") for name in official)
    wanted = {
        _renamed(name, _OUR_PARTS): tensor
        for name, tensor in ours.items()
        if has_pyramid or not name.startswith("pyramid.")
    }
    # Compared under the official names: those are what the user sees in the file.
    _raise_mismatches(problems + _mismatches(wanted, official))
    loaded = {_renamed(name, _OFFICIAL_PARTS): value for name, value in official.items()}
    head.load_state_dict({**ours, **loaded})
    if not has_pyramid:
        warnings.warn(
            "the state dict holds no pyramid (mamba_stages.*), since the official code never saves "
            "it: the layers are loaded, and the head's pyramid stays as it was",
            stacklevel=2,
        )


def _local_folder(name: str | os.PathLike[str]) -> Path:
    folder = Path(name)
    if name and folder.is_dir():  # Path("") is the current folder, which nobody meant
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
            f"{name!r} is not a folder here, and loading it from the hub needs huggingface_hub: "
            "pip install 'muse-adapter[hub]'"
        ) from error
    try:
        # One call for both files, so that they are of the same revision.
        path = huggingface_hub.snapshot_download(name, allow_patterns=[CONFIG_NAME, WEIGHTS_NAME])
    except Exception as error:  # its errors have no common class across versions
        raise OSError(
            f"{name!r} is not a folder here, and the hub does not give it: {error}"
        ) from error
    return Path(path)


def _mismatches(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    missing = [f"missing {name}" for name in wanted if name not in given]
    unexpected = [f"unexpected {name}" for name in given if name not in wanted]
    unfit = []
    for name, tensor in wanted.items():
        value = given.get(name, tensor)
        if not isinstance(value, Tensor):
            unfit.append(f"{name} must be a tensor, got {type(value).__name__}")
        elif value.shape != tensor.shape:
            unfit.append(f"{name} must have shape {tuple(tensor.shape)}, got {tuple(value.shape)}")
        elif value.is_floating_point() != tensor.is_floating_point():
            unfit.append(f"{name} must be of a type like {tensor.dtype}, got {value.dtype}")
    return missing + unexpected + unfit


def _raise_mismatches(problems: list[str]) -> None:
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise ValueError(f"the state dict does not fit the head ({len(problems)} problems):{lines}")


def _renamed(name: str, parts: tuple[tuple[re.Pattern[str], str], ...]) -> str:
    for pattern, replacement in parts:
        if pattern.match(name):
            return pattern.sub(replacement, name, count=1)
    return name
