"""Writing files so that an interrupt or a full disk leaves nothing half-written."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import torch

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
        OSError: it cannot be made or written to; the message names it and the reason.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OSError(f"cannot make the folder {folder}: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OSError(f"cannot write to the folder {folder}: permission denied")


def write_tensors(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values beside and rename."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    ensure_folder(path.parent)
    write_bytes(path, buffer.getvalue())


def read_tensors(path: Path) -> dict[str, Any]:
    """What `write_tensors` wrote, on the CPU.

    Raises:
        ValueError: the file is damaged.
        OSError: it cannot be read.
    """
    content = path.read_bytes()
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except DAMAGE as error:  # torch's own words speak of reading it without restrictions
        raise ValueError(f"{path} is damaged, delete it and start again") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, or of its syntax
        raise ValueError(f"{path} is damaged: {error}") from error


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside and rename.

    Raises:
        OSError: the file cannot be written; the message names it and the reason.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
    finally:
        beside.unlink(missing_ok=True)
