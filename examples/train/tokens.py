"""Tokens of a frozen model: of every video once, kept on the disk and read in every step."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor
from tqdm import tqdm

from examples.train.processes import gather, on_all, rank_and_world
from muse_adapter.data import CachedTokens, collate_tokens
from muse_adapter.data.token_cache import write_tokens
from muse_adapter.encoders import VideoEncoder
from muse_adapter.files import write_errors, write_whole

LIST_FILE = "videos.json"  # which video is which, and how frames were made of it


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


class _Frames:
    """The preprocessed frames and mask of videos, for `cache_tokens`."""

    def __init__(self, model: SentenceTransformer, videos: Sequence[str]) -> None:
        self.model = model
        self.videos = videos

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        features = self.model.preprocess([self.videos[index]])
        return features["pixel_values_videos"][0], features["attention_mask"][0]


def store_tokens(
    model: SentenceTransformer,
    videos: Sequence[str],
    root: str,
    folder: Path,
    *,
    dtype: torch.dtype,
    workers: int = 0,
    progress: bool = True,
) -> StoredTokens:
    """Open the tokens of videos, once those that are missing are written.

    Every process must call it: they share the work. The same call goes on where one was stopped.

    Args:
        model: A model with a frozen `VideoTransformer`.
        videos: Paths of the videos.
        root: Folder of the videos: their paths in it are their names in `folder`.
        folder: Where the tokens are kept.
        dtype: Of the kept tokens.
        workers: Processes that read videos.
        progress: Whether the first process shows a bar.

    Raises:
        OSError: The folder cannot be written.
        ValueError: The folder holds tokens of another model, or other frames, or lacks some of the
            videos; the message says which.
    """
    module: Any = model[0]
    wanted = {
        "frames": module.num_frames,
        "fps": module.fps,
        "pixels": pixel_settings(module.frame_inputs.processor),
        "dtype": str(dtype).removeprefix("torch."),
    }
    by_name = {Path(os.path.relpath(video, root)).as_posix(): video for video in videos}
    listed = on_all(lambda: _read_list(folder, wanted, sorted(by_name)))
    files = [by_name.get(name, os.path.join(root, name)) for name in listed]
    frames = _Frames(model, files)
    cached = on_all(lambda: _open(folder, module.encoder, dtype))
    if not all(gather(cached is not None)):
        rank, world = rank_and_world()
        if rank == 0:
            print(_announcement(folder, module.encoder, frames, module.num_frames, dtype))
        with tqdm(desc="encoding videos", disable=not progress or rank > 0) as bar:

            def show(done: int, count: int) -> None:
                bar.total, bar.n = count, done
                bar.refresh()

            def write() -> None:
                write_tokens(
                    module.encoder,
                    frames,
                    folder,
                    dtype=dtype,
                    num_workers=workers,
                    progress=show,
                    share=(rank, world),
                )

            on_all(write)
        cached = on_all(lambda: CachedTokens(folder, encoder=module.encoder, dtype=dtype))
    assert cached is not None
    return StoredTokens(cached, {file: i for i, file in enumerate(files)})


def pixel_settings(processor: Any) -> dict[str, Any]:
    """Return what an image processor does with the pixels of a frame."""
    names = ("size", "crop_size", "resample", "rescale_factor", "image_mean", "image_std")
    settings = {name: getattr(processor, name, None) for name in names}
    # As JSON has them, so that they can be compared with those of a file.
    return json.loads(json.dumps(settings, default=dict))


def _read_list(folder: Path, wanted: dict[str, Any], names: list[str]) -> list[str]:
    """Return the names of the videos in the order of their tokens; a new folder gets `names`."""
    path = folder / LIST_FILE
    if not path.is_file():
        if folder.is_dir() and any(folder.iterdir()):
            raise ValueError(f"{folder} is neither empty nor a folder of --cache-tokens")
        with write_errors("the tokens", folder):
            folder.mkdir(parents=True, exist_ok=True)
            content = json.dumps({**wanted, "videos": names}, indent=2) + "\n"
            # Of several processes the first wins; all write the same.
            write_whole({path: content.encode()}, keep_existing=True)
    try:
        kept = json.loads(path.read_text())
        listed = kept.pop("videos")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({error}): use another --cache-tokens") from error
    differences = [
        f"{name} {kept.get(name)} and not {value}"
        for name, value in wanted.items()
        if kept.get(name) != value
    ]
    if differences:
        raise ValueError(
            f"{folder} holds tokens with {', '.join(differences)}: use another --cache-tokens"
        )
    if missing := sorted(set(names) - set(listed)):
        raise ValueError(
            f"{folder} holds the tokens of {len(listed)} videos, but not of {len(missing)}, the "
            f"first {missing[0]}: use another --cache-tokens"
        )
    return listed


def _open(folder: Path, encoder: VideoEncoder, dtype: torch.dtype) -> CachedTokens | None:
    """Open a folder; None: there are tokens to be written."""
    try:
        return CachedTokens(folder, encoder=encoder, dtype=dtype)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error


def _announcement(
    folder: Path, encoder: VideoEncoder, frames: _Frames, num_frames: int, dtype: torch.dtype
) -> str:
    pixels, _ = frames[0]
    device = next(encoder.head.parameters()).device
    tokens = encoder.frame_tokens(pixels[:1].to(device))[0]
    size = len(frames) * num_frames * tokens.numel() * dtype.itemsize
    free = shutil.disk_usage(folder).free
    each = f"{num_frames} frames of {len(tokens)} x {tokens.shape[1]} numbers"
    return (
        f"{folder}: the tokens of {len(frames)} videos, up to {each} each, take up to "
        f"{_bytes(size)} on the disk, where {_bytes(free)} are free"
    )


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
