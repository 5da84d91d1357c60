"""Files that are read whole or called damaged; an interrupt leaves nothing half-written."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from muse_adapter.files import write_whole

# What torch's reader of archives and its restricted unpickler, a small interpreter, raise on bytes
# that are cut off, changed, or not theirs.
DAMAGE = (
    pickle.UnpicklingError,
    struct.error,
    EOFError,
    RuntimeError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
)


def ensure_folder(folder: Path) -> None:
    """Make a folder, parents included, and see that one may write there.

    Raises:
        OSError: It cannot be made or written to; the message names it and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"cannot write to the folder {folder}: permission denied")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all.

    Raises:
        OSError: The file cannot be written; the message names it and the reason.
    """
    try:
        write_whole({path: content})
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values, whole or not at all; the folder is made if need be."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    ensure_folder(path.parent)
    write_bytes(path, buffer.getvalue())


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    write_bytes(path, (json.dumps(content, indent=2) + "\n").encode())


def read_tensors(path: Path, names: Iterable[str]) -> dict[str, Any]:
    """Read what `write_tensors` wrote, onto the CPU.

    Args:
        path: The file.
        names: Of what it must hold, and nothing else.

    Raises:
        ValueError: The file is damaged, or holds other things.
        OSError: It cannot be read.
    """
    content = path.read_bytes()
    try:
        read = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DAMAGE as error:  # torch's own words speak of reading it without restrictions
        raise ValueError(f"{path} is damaged, delete it and start again") from error
    names = set(names)
    if not isinstance(read, dict) or read.keys() != names:
        raise ValueError(
            f"{path} is a file of something else, delete it and start again: it must hold "
            f"{', '.join(sorted(names))}"
        )
    return read


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, or of its syntax
        raise ValueError(f"{path} is damaged: {error}") from error
