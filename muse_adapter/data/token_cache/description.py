"""Description of the tokens in a folder: written once, compared when a call is resumed."""

from __future__ import annotations

import json
import zlib
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from muse_adapter.strict_json import parse_json, read_text
from muse_adapter.version import VERSION

DESCRIPTION_NAME = "tokens.json"
PROBE_NAME = "probe.safetensors"
SHARDS = "tokens-*.safetensors"
FORMAT = 2  # 1 had no checksums
PURPOSE = "caching tokens"
DTYPES = "float64", "float32", "float16", "bfloat16"

# Far above any folder, so that a damaged number in a file cannot ask for all memory.
_MAX_SIZE, _MAX_COUNT, _MAX_PIXELS = 1 << 20, 10**9, 1 << 24


@dataclass(frozen=True)
class Description:
    """Properties that all shards of a folder share.

    Attributes:
        family: The backbone's family, as in `PatchTokens`.
        frame_size: Height and width of the frames in pixels.
        frame_type: Dtype of the frames, such as "float32".
        grid: Patch grid (H, W); None for a custom function without a given grid.
        num_tokens: N, tokens per frame.
        width: C, width of a token.
        computed: Dtype of the backbone's output, such as "float32".
        stored: Dtype of the stored tokens.
        num_videos: Number of videos in the folder.
        videos_per_shard: Number of videos per file; the last file may contain fewer.
        format: Version of the format; from 2 on everything has a checksum.

    Raises:
        TypeError: A field has the wrong type.
        ValueError: A field has an invalid value.
    """

    family: str
    frame_size: tuple[int, int]
    frame_type: str
    grid: tuple[int, int] | None
    num_tokens: int
    width: int
    computed: str
    stored: str
    num_videos: int
    videos_per_shard: int
    format: int = field(default=FORMAT, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.family, str):
            raise TypeError(f"family must be a string, got {self.family!r}")
        for name in ("frame_type", "computed", "stored"):
            if getattr(self, name) not in DTYPES:
                raise ValueError(f"{name} must be one of {DTYPES}, got {getattr(self, name)!r}")
        for name, maximum in (
            *(("num_tokens", _MAX_SIZE), ("width", _MAX_SIZE)),
            *(("num_videos", _MAX_COUNT), ("videos_per_shard", _MAX_COUNT)),
        ):
            _check_int(name, getattr(self, name), maximum)
        _check_pair("frame_size", self.frame_size, _MAX_PIXELS)
        if self.grid is not None:
            _check_pair("grid", self.grid, self.num_tokens)

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_videos // self.videos_per_shard)

    def videos_of(self, shard: int) -> range:
        """Return the indices of the videos in a shard."""
        start = shard * self.videos_per_shard
        return range(start, min(start + self.videos_per_shard, self.num_videos))

    def to_json(self) -> str:
        """Return it as JSON, with a checksum, and the version of the package."""
        values = self._values()
        versions = {"format": FORMAT, "muse_adapter_version": VERSION}
        return json.dumps({**versions, **values, "crc32": _checksum(values)}, indent=2) + "\n"

    def differences(self, other: Description) -> list[str]:
        """Return one line for each field in which `other` differs."""
        given = other._values()
        return [
            f"{name} is {stored!r} in the folder and {given[name]!r} now"
            for name, stored in self._values().items()
            if given[name] != stored
        ]

    def _values(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "format"}


def shard_path(folder: Path, shard: int) -> Path:
    """Return the path of a shard."""
    return folder / SHARDS.replace("*", f"{shard:05d}")


def read_description(folder: Path) -> Description:
    """Read `tokens.json` of a folder.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged or has another version of the format.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} was not written by cache_tokens: it contains no {DESCRIPTION_NAME}"
        )
    try:
        values = parse_json(read_text(path))
        if not isinstance(values, dict):
            raise TypeError(f"it must be an object, got {type(values).__name__}")
        version = values.pop("format", None)
        if type(version) is int and version not in (1, FORMAT):
            raise _OtherFormat(
                f"{str(path)!r} has format {version!r}, this version reads 1 and {FORMAT}"
            )
        return _from_values(version, values)
    except _OtherFormat:
        raise
    except (ValueError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error}") from error


class _OtherFormat(ValueError):
    """The file is of another version of the format, and may be whole."""


def _from_values(version: object, values: dict[str, Any]) -> Description:
    expected = {f.name for f in fields(Description)} - {"format"} | {"muse_adapter_version"}
    if version == FORMAT:
        expected.add("crc32")
    if type(version) is not int or set(values) != expected:
        found = sorted(set(values) ^ expected)
        raise ValueError(f"it has the format {version!r} and lacks or should not have {found}")
    del values["muse_adapter_version"]
    crc = values.pop("crc32", None)
    if version == FORMAT and crc != _checksum(values):
        raise ValueError(
            f"its content has the checksum {_checksum(values)}, but was written with {crc!r}"
        )
    for name in ("frame_size", "grid"):  # JSON has no tuples
        values[name] = tuple(values[name]) if isinstance(values[name], list) else values[name]
    return Description(**values, format=version)


def _checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def _check_int(name: str, value: object, maximum: int) -> None:
    if type(value) is not int:
        raise TypeError(f"{name} must be an int, got {value!r}")
    if not 1 <= value <= maximum:
        raise ValueError(f"{name} must lie between 1 and {maximum}, got {value}")


def _check_pair(name: str, value: object, maximum: int) -> None:
    if not isinstance(value, tuple) or len(value) != 2:
        raise TypeError(f"{name} must be a pair of ints, got {value!r}")
    for length in value:
        _check_int(name, length, maximum)
    if value[0] * value[1] > maximum:
        raise ValueError(f"{name} must have a product of at most {maximum}, got {value}")
