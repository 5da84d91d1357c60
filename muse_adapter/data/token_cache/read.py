"""CachedTokens: a data set of the tokens that `cache_tokens` wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from muse_adapter.data.token_cache.description import (
    PURPOSE,
    SHARDS,
    read_description,
    shard_path,
)
from muse_adapter.data.token_cache.probe import (
    check_frozen,
    check_probe,
    probe_checksum,
    read_probe,
    run_probe,
)
from muse_adapter.data.token_cache.shards import check_shard, check_video, open_shard, read_video
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.tensor_files import import_safetensors


class CachedTokens(Dataset[tuple[Tensor, Tensor]]):
    """Read tokens and masks of videos from the memory-mapped files that `cache_tokens` wrote.

    `cached[i]` is a pair: the tokens (T, N, C) of video i as `encoder.forward_tokens` returns them
    (zeros for masked frames), and its mask (T,), bool. A batch of both is the input of a head:
    `head(tokens, frame_mask, grid=cached.grid)`.

    When the folder is opened, its description and the names, shapes, dtypes and masks of all files
    are checked. A video is compared with its checksum when it is read for the first time: the
    folder may be larger than what can be read in a minute.

    Args:
        folder: The folder of a completed call of `cache_tokens`.
        encoder: If given, check that it is the encoder that filled the folder.
        dtype: Dtype of the tokens. None: as stored, but at least float32, as heads need it.

    Attributes:
        description: Properties of the tokens, as `cache_tokens` recorded them.

    Raises:
        FileNotFoundError: `cache_tokens` did not write this folder, or files are missing.
        ImportError: safetensors is not installed.
        ValueError: A file is damaged, or the encoder is another one; also when a video is read.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        encoder: VideoEncoder | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        import_safetensors(PURPOSE)
        self.folder = Path(folder)
        self.description = read_description(self.folder)
        stored = getattr(torch, self.description.stored)
        self.dtype = torch.promote_types(stored, torch.float32) if dtype is None else dtype
        self._files: dict[int, Any] = {}
        self._checked: set[int] = set()  # videos that were compared with their checksums
        # Before the files, so that another encoder is named while some are still missing.
        if encoder is not None:
            check_frozen(encoder)
            frame_type = getattr(torch, self.description.frame_type)
            tokens = run_probe(encoder, self.description.frame_size, frame_type)
            check_probe(tokens, read_probe(self.folder, self.description))
        self._check_files()

    def _check_files(self) -> None:
        """Check that every file is there and matches the description."""
        count = self.description.num_shards
        found = {path.name for path in self.folder.glob(SHARDS)}
        # As far as files are there: a damaged description may speak of any number.
        for shard in range(count):
            path = shard_path(self.folder, shard)
            if path.name not in found:
                raise FileNotFoundError(
                    f"{str(self.folder)!r} lacks {path.name} of {count} files: call cache_tokens "
                    "again, it resumes where it stopped"
                )
        probe = probe_checksum(self.folder)
        for shard in range(count):
            check_shard(shard_path(self.folder, shard), self.description, shard, probe)

    @property
    def grid(self) -> tuple[int, int] | None:
        """Patch grid (H, W) of every frame, the head's `grid`."""
        return self.description.grid

    def file_of(self, index: int) -> Path:
        """Return the file with the tokens of a video."""
        return shard_path(self.folder, self._shard_of(index))

    def mask(self, index: int) -> Tensor:
        """Read the mask (T,), bool, of a video without its tokens."""
        return self._open(self._shard_of(index)).get_tensor(f"{index % len(self)}.mask").clone()

    def __len__(self) -> int:
        return self.description.num_videos

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        file = self._open(self._shard_of(index))
        index %= len(self)
        stored, mask = read_video(file, index)
        if index not in self._checked:
            check_video(self.file_of(index), file, index, stored, mask)
            self._checked.add(index)
        # Copies: an in-place change of the mapped memory would show at the next read.
        tokens = torch.zeros(len(mask), *stored.shape[1:], dtype=self.dtype)
        tokens[mask] = stored.to(self.dtype)
        return tokens, mask.clone()

    def _shard_of(self, index: int) -> int:
        if not -len(self) <= index < len(self):
            raise IndexError(f"video {index} of {len(self)}")
        return index % len(self) // self.description.videos_per_shard

    def _open(self, shard: int) -> Any:
        if shard not in self._files:
            self._files[shard] = open_shard(shard_path(self.folder, shard))
        return self._files[shard]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}  # every process maps the files itself
