"""Atomic writing of files, and the import of safetensors."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Write files atomically: after a crash, each is complete or as it was before.

    Every file is first written under a temporary name in its own folder; they are renamed once all
    of them are written.

    Args:
        contents: Content of each file; existing files are replaced.

    Raises:
        OSError: A file cannot be written. No file was changed, unless a rename failed.
    """
    parts = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in contents}
    try:
        for path, part in parts.items():
            with part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in parts.items():
            os.replace(part, path)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def import_safetensors(purpose: str) -> ModuleType:
    """Import safetensors with its functions for torch.

    Args:
        purpose: What needs it, as in "saving and loading heads"; the error message starts with it.

    Returns:
        The package.

    Raises:
        ImportError: It is not installed; the message says how to install it.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs safetensors: pip install 'muse-adapter[hub]'"
        ) from error
    return safetensors
