"""Description of the tokens in a folder: written once, compared when a call is resumed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from muse_adapter.version import VERSION

DESCRIPTION_NAME = "tokens.json"
PROBE_NAME = "probe.safetensors"
SHARDS = "tokens-*.safetensors"
FORMAT = 1
PURPOSE = "caching tokens"


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

    @property
    def num_shards(self) -> int:
        """Number of shards."""
        return -(-self.num_videos // self.videos_per_shard)

    def videos_of(self, shard: int) -> range:
        """Return the indices of the videos in a shard."""
        start = shard * self.videos_per_shard
        return range(start, min(start + self.videos_per_shard, self.num_videos))

    def to_json(self) -> str:
        """Return it as JSON, with the versions of the format and of the package."""
        versions = {"format": FORMAT, "muse_adapter_version": VERSION}
        return json.dumps({**versions, **asdict(self)}, indent=2) + "\n"

    def differences(self, other: Description) -> list[str]:
        """Return one line for each field in which `other` differs."""
        return [
            f"{name} is {stored!r} in the folder and {given!r} now"
            for name, stored in asdict(self).items()
            if (given := getattr(other, name)) != stored
        ]


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
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
        values.pop("muse_adapter_version")
        if version == FORMAT:
            if mismatch := set(values) ^ {field.name for field in fields(Description)}:
                raise KeyError(*sorted(mismatch))
            for name in ("frame_size", "grid"):  # JSON has no tuples
                values[name] = values[name] and tuple(values[name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{str(path)!r} has format {version!r}, this version reads {FORMAT}")
    return Description(**values)
