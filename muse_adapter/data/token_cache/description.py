"""What the tokens of one folder are: written once, compared whenever it is gone on with."""

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
    """What all shards of a folder have in common.

    Attributes:
        family: The backbone's family, as in `PatchTokens`.
        frame_size: Height and width of the frames in pixels.
        frame_type: Type of the frames, such as "float32".
        grid: Patch grid (H, W); None for a function of one's own that was given none.
        num_tokens: N, tokens of a frame.
        width: C, width of a token.
        computed: Type in which the backbone gave the tokens, such as "float32".
        stored: Type in which they are stored.
        num_videos: Videos of the whole folder.
        videos_per_shard: Videos of one file; the last may hold fewer.
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
        """Number of files that hold the videos."""
        return -(-self.num_videos // self.videos_per_shard)

    def videos_of(self, shard: int) -> range:
        """Indices of the videos in one file."""
        start = shard * self.videos_per_shard
        return range(start, min(start + self.videos_per_shard, self.num_videos))

    def to_json(self) -> str:
        """As text, with the version of the format and of the package."""
        head = {"format": FORMAT, "muse_adapter_version": VERSION}
        return json.dumps({**head, **asdict(self)}, indent=2) + "\n"

    def differences(self, other: Description) -> list[str]:
        """One line for each field in which `other` differs."""
        return [
            f"{name} is {ours!r} in the folder and {theirs!r} now"
            for name, ours in asdict(self).items()
            if (theirs := getattr(other, name)) != ours
        ]


def shard_path(folder: Path, shard: int) -> Path:
    """The file of one shard."""
    return folder / SHARDS.replace("*", f"{shard:05d}")


def read_description(folder: Path) -> Description:
    """Reads `tokens.json`.

    Raises:
        FileNotFoundError: The folder holds none.
        ValueError: It is damaged, or of another version of the format.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{str(folder)!r} is no folder that cache_tokens wrote: it holds no {DESCRIPTION_NAME}"
        )
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
        values.pop("muse_adapter_version")
        if version == FORMAT:
            if odd := set(values) ^ {field.name for field in fields(Description)}:
                raise KeyError(*sorted(odd))
            for name in ("frame_size", "grid"):  # JSON has no tuples
                values[name] = values[name] and tuple(values[name])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{str(path)!r} is damaged: {error!r}") from error
    if version != FORMAT:
        raise ValueError(f"{str(path)!r} has format {version!r}, this version reads {FORMAT}")
    return Description(**values)
