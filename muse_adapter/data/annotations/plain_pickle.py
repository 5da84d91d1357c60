"""Pickles of plain values, read without running what they name."""

from __future__ import annotations

import io
import pickle
import pickletools
from pathlib import Path
from typing import Any, NoReturn


class _PlainUnpickler(pickle.Unpickler):
    """Make containers, strings, bytes and numbers: nothing that a pickle names is looked up."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it wants {module}.{name}")


def read_plain_pickle(path: Path) -> Any:
    """Read a pickle of containers, strings, bytes and numbers, from Python 2 or 3.

    Nothing that the file names is imported or called.

    Args:
        path: The file.

    Returns:
        Its value.

    Raises:
        OSError: It cannot be read.
        ValueError: It holds anything else, or is damaged.
    """
    content = path.read_bytes()
    try:
        # A registered code can stand for an object, which `find_class` is not always asked for.
        for code, argument, _ in pickletools.genops(content):
            if code.name in ("EXT1", "EXT2", "EXT4"):
                raise pickle.UnpicklingError("it wants an object by a registered code")
            # Memory for so many places would be taken at once.
            if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and (argument or 0) >= len(content):
                raise pickle.UnpicklingError(f"it names place {argument} of its memo")
        return _PlainUnpickler(io.BytesIO(content), encoding="utf-8").load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"{path} is no pickle of plain values: {error}") from error
