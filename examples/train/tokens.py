"""Tokens of a frozen model: of every video once, kept on the disk and read in every step."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm import tqdm

from examples.train.processes import gather, on_all, rank_and_world, same_on_all
from examples.train.token_list import LIST_FILE, describe_videos, name_of, read_list, write_list
from muse_adapter.data import CachedTokens, collate_tokens
from muse_adapter.data.token_cache import write_tokens
from muse_adapter.data.token_cache.description import read_description, shard_path


class StoredTokens:
    """The tokens of videos by their paths.

    Args:
        cached: The tokens.
        numbers: For each path the number of its video there.
    """

    def __init__(self, cached: CachedTokens, numbers: dict[str, int]) -> None:
        self.cached = cached
        self.numbers = numbers

    def __contains__(self, video: object) -> bool:
        return video in self.numbers

    def features(self, videos: Sequence[str]) -> dict[str, Any]:
        """Return what a model takes in place of the frames of videos."""
        tokens, mask = collate_tokens([self.cached[self.numbers[video]] for video in videos])
        # The trainer finds the inputs of a batch by names that it knows.
        return {"pixel_values_videos": tokens, "attention_mask": mask.long(), "modality": "video"}

    def without_frames(self, videos: Sequence[str]) -> dict[str, str]:
        """Find the videos that could not be read when they were encoded.

        Returns:
            For each the file that says so.
        """
        numbers = {video: self.numbers[video] for video in videos}
        return {
            video: f"{video} has no frames in {self.cached.file_of(number)}"
            for video, number in numbers.items()
            if not self.cached.mask(number).any()
        }


class TokenFolder:
    """A folder that keeps the tokens of videos.

    Every process calls the same methods: they share the work.

    Args:
        path: The folder.
        model: A model with a frozen `VideoTransformer`.
        videos: Paths of the videos.
        root: Folder of the videos: their paths in it are their names in the folder.
        dtype: Of the kept tokens.
    """

    def __init__(
        self,
        path: Path,
        model: SentenceTransformer,
        videos: Sequence[str],
        root: str,
        dtype: torch.dtype,
    ) -> None:
        module: Any = model[0]
        self.path = path
        self.encoder = module.encoder
        self.dtype = dtype
        self.num_frames = module.num_frames
        self.model = model
        self.videos = videos
        self.root = root

    def check(self) -> None:
        """Check that the folder is new, or has these tokens or a part of them; write nothing.

        Raises:
            ValueError: It holds tokens of another model, or of other frames or files, or lacks some
                of the videos; the message says which.
        """
        on_all(self._check)

    def store(self, *, workers: int = 0, progress: bool = True) -> StoredTokens:
        """Open the tokens, once those that are missing are written.

        The same call goes on where one was stopped.

        Args:
            workers: Processes that read videos.
            progress: Whether the first process shows a bar.

        Raises:
            OSError: The folder cannot be written.
            ValueError: See `check`.
        """
        names = same_on_all(self._make_list)
        by_name = {name_of(video, self.root): video for video in self.videos}
        files = [by_name.get(name, os.path.join(self.root, name)) for name in names]
        cached = on_all(lambda: self._open(len(files)))
        if not all(gather(cached is not None)):
            self._write(_Frames(self.model, files), workers, progress)
            cached = on_all(lambda: self._open_written(len(files)))
        assert cached is not None
        return StoredTokens(cached, {file: i for i, file in enumerate(files)})

    def _wanted(self) -> dict[str, Any]:
        return describe_videos(self.model[0], self.videos, self.root, self.dtype)

    def _check(self) -> None:
        names = self._read_list()
        if names is not None:
            self._open(len(names))

    def _read_list(self) -> list[str] | None:
        return read_list(self.path, self._wanted())

    def _make_list(self) -> list[str]:
        names = self._read_list()
        if names is None:
            write_list(self.path, self._wanted())
            names = self._read_list()  # perhaps another process was faster
        assert names is not None
        return names

    def _open(self, count: int) -> CachedTokens | None:
        """Open the tokens; None: there are some to be written."""
        try:
            cached = CachedTokens(self.path, encoder=self.encoder, dtype=self.dtype)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from error
        if len(cached) != count:
            raise ValueError(
                f"{self.path} holds the tokens of {len(cached)} videos, but {LIST_FILE} lists "
                f"{count}: use another --cache-tokens"
            )
        return cached

    def _open_written(self, count: int) -> CachedTokens:
        cached = self._open(count)
        if cached is None:
            raise FileNotFoundError(
                f"{self.path} lacks tokens that were just written: --cache-tokens must be on a "
                "disk that all processes share"
            )
        return cached

    def _write(self, frames: _Frames, workers: int, progress: bool) -> None:
        """Write the tokens that are missing, as this process's share of the files."""
        rank, world = rank_and_world()
        on_all(lambda: print(self._announcement(frames)) if rank == 0 else None)
        with tqdm(desc="encoding videos", disable=not progress or rank > 0) as bar:

            def show(done: int, count: int) -> None:
                bar.total, bar.n = count, done
                bar.refresh()

            def write() -> None:
                write_tokens(
                    self.encoder,
                    frames,
                    self.path,
                    dtype=self.dtype,
                    num_workers=workers,
                    progress=show,
                    share=(rank, world),
                )

            on_all(write)

    def _announcement(self, frames: _Frames) -> str:
        pixels, _ = frames[0]
        device = next(self.encoder.head.parameters()).device
        tokens = self.encoder.frame_tokens(pixels[:1].to(device))[0]
        left = len(frames) - _count_written(self.path)
        size = left * self.num_frames * tokens.numel() * self.dtype.itemsize
        free = shutil.disk_usage(self.path).free
        each = f"{self.num_frames} frames of {len(tokens)} x {tokens.shape[1]} numbers"
        return (
            f"{self.path}: the tokens of {left} of {len(frames)} videos, up to {each} each, take "
            f"up to {_bytes(size)} more on the disk, where {_bytes(free)} are free"
        )


class _Frames:
    """The preprocessed frames and mask of videos, for `write_tokens`."""

    def __init__(self, model: SentenceTransformer, videos: Sequence[str]) -> None:
        self.model = model
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = self.model.preprocess([self.videos[index]])
        return features["pixel_values_videos"][0], features["attention_mask"][0]


def _count_written(folder: Path) -> int:
    """Count the videos whose tokens are in a folder."""
    try:
        description = read_description(folder)
    except FileNotFoundError:
        return 0
    shards = [s for s in range(description.num_shards) if shard_path(folder, s).is_file()]
    return sum(len(description.videos_of(shard)) for shard in shards)


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
