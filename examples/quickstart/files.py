"""Writing files so that an interrupt or a full disk leaves nothing half-written."""

from __future__ import annotations

import os
from pathlib import Path


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
