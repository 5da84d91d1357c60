"""Files that are there whole or not at all, and the library that puts tensors into them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType


def write_whole(contents: Mapping[Path, bytes]) -> None:
    """Writes files beside their targets, then renames them: a crash leaves no half of a file.

    Args:
        contents: What each file is to hold; a file that is there already is replaced. None is
            renamed before all are written.

    Raises:
        OSError: A file cannot be written; no target was changed, unless a rename itself failed.
    """
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.part") for path in contents}
    try:
        for path, part in beside.items():
            with part.open("wb") as file:
                file.write(contents[path])
                file.flush()
                os.fsync(file.fileno())
        for path, part in beside.items():
            os.replace(part, path)
    finally:
        for part in beside.values():
            part.unlink(missing_ok=True)


def import_safetensors(purpose: str) -> ModuleType:
    """The safetensors package with its functions for torch.

    Args:
        purpose: What needs it, for the message: "saving and loading heads".

    Raises:
        ImportError: It is not installed; the message has the line that installs it.
    """
    try:
        import safetensors
        import safetensors.torch
    except ImportError as error:
        raise ImportError(
            f"{purpose} needs safetensors: pip install 'muse-adapter[hub]'"
        ) from error
    return safetensors
