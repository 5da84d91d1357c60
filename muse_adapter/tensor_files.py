"""Safetensors files with a checksum of their content."""

from __future__ import annotations

import contextlib
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

CHECKSUM = "crc32"  # its name in the metadata


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


def checksum(tensors: Mapping[str, Tensor], text: str = "") -> str:
    """Return the CRC-32 of tensors on the CPU (names, dtypes, shapes, values) and of a text.

    It finds what happens by accident, at more than a gigabyte per second; it is no signature.
    """
    crc = zlib.crc32(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous()
        crc = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), crc)
        # As bytes, since numpy has no bfloat16.
        crc = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, crc)
    return f"{crc:08x}"


def pack_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the content of a safetensors file.

    Args:
        tensors: Contiguous tensors on the CPU that share no memory.
        metadata: Its metadata, to which the checksum of both is added.
    """
    crc = checksum(tensors, _sorted(metadata))
    content: bytes = import_safetensors("writing tensors").torch.save(
        dict(tensors), metadata={**metadata, CHECKSUM: crc}
    )
    return content


def read_tensors(
    path: Path, *, checksum_required: bool = False
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file whole, and compare it with its checksum.

    Args:
        path: The file.
        checksum_required: Refuse a file without a checksum.

    Returns:
        The tensors and the metadata without the checksum.

    Raises:
        ValueError: It is no safetensors file, or is damaged.
    """
    import_safetensors("reading tensors")
    _require_file(path)
    with _format_errors(repr(str(path))):
        # In one go: while the file is being replaced, `safe_open` may meet both.
        content = path.read_bytes()
    return unpack_tensors(content, repr(str(path)), checksum_required=checksum_required)


def unpack_tensors(
    content: bytes, name: str, *, checksum_required: bool = True
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the content of a safetensors file, as `read_tensors`.

    Args:
        content: The content.
        name: What error messages call it.
        checksum_required: Refuse content without a checksum.
    """
    safetensors = import_safetensors("reading tensors")
    with _format_errors(name):
        tensors: dict[str, Tensor] = dict(sorted(safetensors.torch.load(content).items()))
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = dict(header.get("__metadata__") or {})
    expected = metadata.pop(CHECKSUM, None)
    if expected is None and not checksum_required:
        return tensors, metadata
    found = checksum(tensors, _sorted(metadata))
    if found != expected:
        raise ValueError(
            f"{name} is damaged: its content has the checksum {found}, but was written with "
            f"{expected}"
        )
    return tensors, metadata


def read_metadata(path: Path) -> dict[str, str]:
    """Read the metadata of a safetensors file, not its tensors; raises as `read_tensors`."""
    with open_tensors(path) as file:
        return dict(file.metadata() or {})


@contextlib.contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """Open a safetensors file; inside the `with` block errors of its format are `ValueError`.

    Raises:
        ValueError: It is no safetensors file, or is damaged.
    """
    safetensors = import_safetensors("reading tensors")
    _require_file(path)
    with _format_errors(repr(str(path))), safetensors.safe_open(path, framework="pt") as file:
        yield file


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{str(path)!r} is no file")


@contextlib.contextmanager
def _format_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # of safetensors, or of torch for a dtype that it has not
        raise ValueError(f"{name} is truncated or not a safetensors file: {error}") from error


def _sorted(metadata: Mapping[str, str]) -> str:
    return json.dumps(metadata, sort_keys=True)
