"""Saving and loading of models as our own files.

A saved model is one file: `model.safetensors` holds the weights, a checksum, and the config that
belongs to them. `config.json` is a copy of that config for readers. Two files cannot be renamed at
once, so a writer that is killed between them, or two writers, may leave a copy of another save:
loading notices.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from muse_adapter.config import MuseConfig
from muse_adapter.config.base import JsonConfig
from muse_adapter.files import write_errors, write_whole
from muse_adapter.strict_json import read_text
from muse_adapter.tensor_files import import_safetensors, pack_tensors, read_metadata, read_tensors

Config = TypeVar("Config", bound=JsonConfig)

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
DTYPES = torch.float64, torch.float32, torch.float16, torch.bfloat16
_CONFIG_KEY = "config"  # of the metadata of the weights
_PURPOSE = "saving and loading heads"
# How often, and after how many seconds, two files that differ are read again: a writer renames
# them one after the other.
_ATTEMPTS, _PAUSE = 5, 0.1

_HUB_PART = r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(f"{_HUB_PART}/{_HUB_PART}")


def save_pretrained(head: nn.Module, folder: str | os.PathLike[str]) -> None:
    """Save the weights and the config of a head, as `model.safetensors` and `config.json`.

    The files are written atomically: after a crash, the folder contains no incomplete file. Others
    may save into the folder at the same time: one of the heads stays, whole.

    Args:
        head: Module with a `MuseConfig` or `MamFusionConfig` as its `config`.
        folder: Created if needed; existing files of the two names are replaced.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The folder cannot be created or written.
        TypeError: `head` has no config.
        ValueError: The weights are not finite, or of several dtypes; nothing is written.
    """
    config = getattr(head, "config", None)
    if not isinstance(config, JsonConfig):
        raise TypeError(
            "save_pretrained needs a model with its MuseConfig or MamFusionConfig as config (the "
            f"bare model, not a wrapper around it), got {type(head).__name__}"
        )
    import_safetensors(_PURPOSE)
    # Copies, since safetensors refuses tensors that share memory or are not contiguous.
    state = {
        name: tensor.detach().to("cpu", memory_format=torch.contiguous_format, copy=True)
        for name, tensor in head.state_dict().items()
    }
    _check_weights(state, "the head")
    target, text = Path(folder), config.to_json()
    weights = pack_tensors(state, {"format": "pt", _CONFIG_KEY: text})
    with write_errors("the head", target):
        target.mkdir(parents=True, exist_ok=True)
        write_whole({target / WEIGHTS_NAME: weights, target / CONFIG_NAME: text.encode()})
        # Whoever writes the copy last finds out whether the weights are another writer's.
        while (current := read_metadata(target / WEIGHTS_NAME).get(_CONFIG_KEY, text)) != text:
            text = current
            write_whole({target / CONFIG_NAME: text.encode()})


def load_pretrained(
    name: str | os.PathLike[str],
    config_type: type[Config] = MuseConfig,  # type: ignore[assignment]
) -> tuple[Config, dict[str, Tensor]]:
    """Load the config and the weights that `save_pretrained` saved.

    Args:
        name: A folder, or `owner/name` of a model on the Hugging Face hub.
        config_type: Class of the config.

    Returns:
        The config, and the state dict on the CPU, in the dtype in which it was saved.

    Raises:
        FileNotFoundError: `name` is neither a folder nor `owner/name`, or a file is missing.
        ImportError: safetensors (or, for the hub, huggingface_hub) is not installed.
        OSError: The hub does not provide the model.
        ValueError: A file is damaged or of another format, the config is invalid or newer than
            this package, the files are of two saves, or weights are not finite or of several
            dtypes.
    """
    import_safetensors(_PURPOSE)
    folder = _local_folder(name)
    for attempt in range(_ATTEMPTS):
        config, copy, state = _read(folder, config_type)
        if copy == config:
            return config, state
        if attempt < _ATTEMPTS - 1:
            time.sleep(_PAUSE)
    pairs = zip(config.to_dict().items(), copy.to_dict().values(), strict=True)
    fields = [
        f"{field} is {own!r} in {WEIGHTS_NAME} and {other!r} in {CONFIG_NAME}"
        for (field, own), other in pairs
        if own != other
    ]
    raise ValueError(
        f"{str(folder)!r} contains the files of two saves, or an edited one: {'; '.join(fields)}. "
        f"{WEIGHTS_NAME} alone is a whole head: delete {CONFIG_NAME} to load that"
    )


def _read(folder: Path, config_type: type[Config]) -> tuple[Config, Config, dict[str, Tensor]]:
    """Read the config of the weights, that of `config.json`, and the weights.

    A head of the first release has the second config only, and no checksum; one without its copy
    has the first only.
    """
    weights, readable = folder / WEIGHTS_NAME, folder / CONFIG_NAME
    _require(weights)
    state, metadata = read_tensors(weights)
    _check_weights(state, repr(str(weights)))
    embedded = metadata.get(_CONFIG_KEY)
    with _config_errors(weights):
        own = None if embedded is None else config_type.from_json(embedded)
    if own is not None and not os.path.lexists(readable):
        return own, own, state
    _require(readable)
    with _config_errors(readable):
        copy = config_type.from_json(read_text(readable))
    return own or copy, copy, state


def _require(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(path.parent)!r} must contain {CONFIG_NAME} and {WEIGHTS_NAME}, "
            f"found no {path.name}"
        )


@contextlib.contextmanager
def _config_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot use {str(path)!r}: {error}") from error


def _check_weights(state: Mapping[str, Tensor], where: str) -> None:
    """Refuse weights that no head has: none, of several or other dtypes, not finite."""
    if not state:
        raise ValueError(f"{where} contains no weights")
    first: dict[torch.dtype, str] = {}
    for name, tensor in state.items():
        first.setdefault(tensor.dtype, name)
    if len(first) > 1 or not set(first) <= set(DTYPES):
        found = ", ".join(f"{dtype} ({name})" for dtype, name in first.items())
        raise ValueError(
            f"{where} must have weights of one of {', '.join(map(str, DTYPES))}, got {found}"
        )
    if wrong := [name for name, tensor in state.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{where} has weights that are not finite: {', '.join(wrong[:3])}"
            + (f" and {len(wrong) - 3} others" if len(wrong) > 3 else "")
        )


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
