"""The manifest of a local table: which bytes of which files are valid."""

from __future__ import annotations

import json
import math
import secrets
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from muse_adapter.files import write_whole
from muse_adapter.search.segments import Settings
from muse_adapter.strict_json import parse_json, read_text
from muse_adapter.version import VERSION

MANIFEST_NAME = "index.json"
FORMAT = 1
COLUMNS = "names", "videos", "segments", "vectors", "frames", "removed"


@dataclass(frozen=True)
class Manifest:
    """A state of a local table.

    Attributes:
        settings: Fixed properties.
        generation: Number in the names of the files.
        commit: Number of the change that led to this state.
        num_videos: Videos that are not removed.
        num_segments: Segments of these videos.
        frame_width: F, width of the frame features; 0: none so far.
        sizes: Valid bytes of each file.
        max_norm: A bound on the norms of all vectors, so that no search has to read them for it;
            None: unknown, in a table of an earlier version.
        removed_crc: Checksum of the list of removed videos.
        table: Random number of the table, which tells it from another in the same folder.
    """

    settings: Settings
    generation: int = 1
    commit: int = 0
    num_videos: int = 0
    num_segments: int = 0
    frame_width: int = 0
    sizes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COLUMNS, 0))
    max_norm: float | None = 0.0
    removed_crc: int = 0
    table: int = field(default_factory=lambda: secrets.randbits(53))

    def __post_init__(self) -> None:
        if not isinstance(self.sizes, dict) or set(self.sizes) != set(COLUMNS):
            raise ValueError(f"sizes must be of the files {COLUMNS}, got {self.sizes!r}")
        numbers = {f.name: getattr(self, f.name) for f in fields(self)} | self.sizes
        for name in ("settings", "sizes", "max_norm"):
            del numbers[name]
        for name, value in numbers.items():
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be an int of at least 0, got {value!r}")
        norm = self.max_norm
        if norm is not None and not (isinstance(norm, float) and 0 <= norm < math.inf):
            raise ValueError(f"max_norm must be a finite float of at least 0, got {norm!r}")


def column_path(folder: Path, name: str, generation: int) -> Path:
    """Return the path of a file of a generation."""
    return folder / f"{name}-{generation}.bin"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace the manifest durably: what it names must be on the disk before."""
    values = _to_values(manifest)
    versions = {"format": FORMAT, "muse_adapter_version": VERSION}
    text = json.dumps({**versions, **values, "crc32": _checksum(values)}, indent=2) + "\n"
    write_whole({folder / MANIFEST_NAME: text.encode()})


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is damaged, or of another version of the format.
    """
    path = folder / MANIFEST_NAME
    try:
        text = read_text(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FileNotFoundError(
            f"there is no index in {str(folder)!r}: it has no {MANIFEST_NAME}"
        ) from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    try:
        values = parse_json(text)
        if not isinstance(values, dict):
            raise ValueError(f"it must be an object, got {type(values).__name__}")
        version = values.pop("format", None)
        if version == FORMAT:
            return _from_values(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error
    raise ValueError(f"{str(path)!r} has format {version!r}, this version reads {FORMAT}")


def _to_values(manifest: Manifest) -> dict[str, Any]:
    values = asdict(manifest)
    return {**values.pop("settings"), **values}


def _from_values(values: dict[str, Any]) -> Manifest:
    values.pop("muse_adapter_version", None)
    crc = values.pop("crc32", None)
    if crc != _checksum(values):
        raise ValueError(
            f"its content has the checksum {_checksum(values)}, but was written with {crc!r}"
        )
    settings = Settings(**{f.name: values.pop(f.name) for f in fields(Settings)})
    return Manifest(settings, **({"max_norm": None} | values))


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"
