"""cache_tokens: run a frozen backbone on every video once and store the tokens."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from muse_adapter.data.token_cache.description import (
    DESCRIPTION_NAME,
    DTYPES,
    PROBE_NAME,
    PURPOSE,
    SHARDS,
    Description,
    read_description,
    shard_path,
)
from muse_adapter.data.token_cache.probe import (
    check_frozen,
    check_probe,
    device_of,
    probe_checksum,
    read_probe,
    run_probe,
    type_name,
)
from muse_adapter.data.token_cache.read import CachedTokens
from muse_adapter.data.token_cache.shards import check_shard, check_videos, write_shard
from muse_adapter.encoders.checks import check_frames
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.files import write_errors, write_whole
from muse_adapter.tensor_files import import_safetensors, pack_tensors

logger = logging.getLogger(__name__)


class Videos(Protocol):
    """A sequence of videos: a list or a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


def cache_tokens(
    encoder: VideoEncoder,
    videos: Videos,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    grid: tuple[int, int] | None = None,
    videos_per_shard: int = 32,
    num_workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
) -> CachedTokens:
    """Write the tokens of every video, the input of the head, to a folder.

    After an interruption, the same call resumes: files are written atomically, and existing ones
    are compared with their checksums and kept. Several processes may fill one folder: each file is
    one of theirs, whole. Under `torch.autocast` the backbone computes as in training under
    autocast.

    Args:
        encoder: An encoder with a frozen backbone (`freeze=True`), already on its device.
        videos: `videos[i]` is the frames (T, 3, height, width), preprocessed for the backbone, or
            the pair of frames and mask (T,). T may differ between videos, height and width may not.
            Every call needs the same videos in the same order, which is not checked.
        folder: Created if it does not exist.
        dtype: Dtype of the stored tokens; `torch.float16` or `torch.bfloat16` halve the size of the
            folder. None: that of the backbone's output, without loss.
        grid: Patch grid (H, W) for a custom `tokens` function of the encoder.
        videos_per_shard: Videos per file; this many are held in memory, and encoded again after an
            interruption.
        num_workers: Processes that prefetch videos, as in `torch.utils.data.DataLoader`.
        progress: Called after each file with how many of the videos are written, and their number.

    Returns:
        The data set that reads the tokens.

    Raises:
        ImportError: safetensors is not installed.
        OSError: The folder cannot be written; the same call resumes.
        TypeError: `encoder`, `videos`, `dtype` or a video is of the wrong type.
        ValueError: The backbone is not frozen; a video has a wrong shape or tokens that are not
            finite in `dtype`; or the folder contains tokens of another encoder, frame size or
            number of videos, or a damaged file.
    """
    write_tokens(
        encoder,
        videos,
        folder,
        dtype=dtype,
        grid=grid,
        videos_per_shard=videos_per_shard,
        num_workers=num_workers,
        progress=progress,
    )
    return CachedTokens(folder)


def write_tokens(
    encoder: VideoEncoder,
    videos: Videos,
    folder: str | os.PathLike[str],
    *,
    dtype: torch.dtype | None = None,
    grid: tuple[int, int] | None = None,
    videos_per_shard: int = 32,
    num_workers: int = 0,
    progress: Callable[[int, int], object] | None = None,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Write the tokens as `cache_tokens` does, or only this process's share of the files.

    Args:
        encoder: See `cache_tokens`.
        videos: See `cache_tokens`.
        folder: See `cache_tokens`.
        dtype: See `cache_tokens`.
        grid: See `cache_tokens`.
        videos_per_shard: See `cache_tokens`.
        num_workers: See `cache_tokens`.
        progress: See `cache_tokens`; it counts the videos of this share.
        share: Number of this process, and how many share the files; `CachedTokens` opens the folder
            once all are done.
    """
    import_safetensors(PURPOSE)  # fail before the backbone runs
    check_frozen(encoder)
    _check_arguments(videos, dtype, videos_per_shard)
    target = Path(folder)

    first, _ = _as_video(videos[0], 0)
    size = (first.shape[-2], first.shape[-1])
    tokens = run_probe(encoder, size, first.dtype)
    description = Description(
        family="own function" if encoder.patch_tokens is None else encoder.patch_tokens.family,
        frame_size=size,
        frame_type=type_name(first.dtype),
        grid=encoder.grid_of(first, grid),
        num_tokens=tokens.shape[0],
        width=tokens.shape[1],
        computed=type_name(tokens.dtype),
        stored=type_name(dtype or tokens.dtype),
        num_videos=len(videos),
        videos_per_shard=videos_per_shard,
    )
    if not (target / DESCRIPTION_NAME).exists():
        _initialize(target, description, tokens)
    description = _check_same(target, description, tokens)
    probe = probe_checksum(target)
    own = range(share[0], description.num_shards, share[1])
    missing = _missing_shards(target, description, probe, own)
    left = sum(len(description.videos_of(shard)) for shard in missing)
    count = sum(len(description.videos_of(shard)) for shard in own)
    if progress is not None:
        progress(count - left, count)
    indices = [index for shard in missing for index in description.videos_of(shard)]
    source: Any = videos  # DataLoader is typed for a Dataset, but works with any sequence
    items = iter(DataLoader(source, batch_size=None, sampler=indices, num_workers=num_workers))
    for shard in missing:
        encoded = {
            index: _encode(encoder, next(items), index, description)
            for index in description.videos_of(shard)
        }
        with write_errors("the tokens", target):
            write_shard(shard_path(target, shard), encoded, probe)
        logger.info("%s: %d of %d files", target, shard + 1, description.num_shards)
        left -= len(encoded)
        if progress is not None:
            progress(count - left, count)


def _check_arguments(videos: Videos, dtype: torch.dtype | None, videos_per_shard: int) -> None:
    if not (hasattr(videos, "__len__") and hasattr(videos, "__getitem__")):
        raise TypeError(
            "videos must be a list or a map-style data set, so that an interrupted call can "
            f"resume; got {type(videos).__name__}"
        )
    if len(videos) == 0:
        raise ValueError("videos must contain at least one video, got none")
    types = [getattr(torch, name) for name in DTYPES]
    if dtype is not None and dtype not in types:
        raise TypeError(f"dtype must be None or one of {types}, got {dtype!r}")
    if isinstance(videos_per_shard, bool) or not isinstance(videos_per_shard, int):
        raise TypeError(f"videos_per_shard must be an int, got {videos_per_shard!r}")
    if videos_per_shard < 1:
        raise ValueError(f"videos_per_shard must be at least 1, got {videos_per_shard}")


def _initialize(folder: Path, description: Description, tokens: Tensor) -> None:
    with write_errors("the tokens", folder):
        folder.mkdir(parents=True, exist_ok=True)
    # In this order: another process, started at the same time, writes the description first.
    if any(folder.glob(SHARDS)) and not (folder / DESCRIPTION_NAME).exists():
        raise ValueError(
            f"{str(folder)!r} contains {SHARDS}, but no {DESCRIPTION_NAME} that describes them: "
            "pass an empty folder"
        )
    probe = {folder / PROBE_NAME: pack_tensors({"tokens": tokens}, {})}
    with write_errors("the tokens", folder):
        # Another process may start at the same time: its shards refer to the files it wrote.
        write_whole(probe, keep_existing=True)
        if not _has_probe(folder, description, tokens):
            write_whole(probe)
        contents = {folder / DESCRIPTION_NAME: description.to_json().encode()}
        write_whole(contents, keep_existing=True)


def _has_probe(folder: Path, description: Description, tokens: Tensor) -> bool:
    """Return whether the probe is of this encoder, or of a folder that is complete.

    It is neither after a call that was interrupted before it wrote its description.
    """
    try:
        check_probe(tokens, read_probe(folder, description))
    except ValueError:
        return (folder / DESCRIPTION_NAME).exists()
    return True


def _check_same(folder: Path, description: Description, tokens: Tensor) -> Description:
    """Check that a folder contains the tokens of this call; return its own description."""
    stored = read_description(folder)
    if differences := stored.differences(description):
        lines = "".join(f"\n  {line}" for line in differences)
        raise ValueError(f"{str(folder)!r} contains other tokens than this call computes:{lines}")
    check_probe(tokens, read_probe(folder, stored))
    return stored


def _missing_shards(
    folder: Path, description: Description, probe: str | None, shards: range
) -> list[int]:
    missing = []
    for shard in shards:
        path = shard_path(folder, shard)
        if path.exists():
            check_shard(path, description, shard, probe)
            check_videos(path, description.videos_of(shard))
        else:
            missing.append(shard)
    return missing


def _as_video(item: Any, index: int) -> tuple[Tensor, Tensor]:
    """Return frames (T, 3, height, width) and mask (T,), bool, of an item of a data set."""
    frames, mask = item if isinstance(item, (tuple, list)) and len(item) == 2 else (item, None)
    try:
        if not isinstance(frames, Tensor):
            raise TypeError(f"expected frames or (frames, mask), got {type(item).__name__}")
        check_frames(frames[None], None if mask is None else mask[None])
    except (TypeError, ValueError) as error:
        raise type(error)(f"video {index}: {error}") from error
    return frames, torch.ones(len(frames), dtype=torch.bool) if mask is None else mask != 0


def _encode(
    encoder: VideoEncoder, item: Any, index: int, description: Description
) -> tuple[Tensor, Tensor]:
    """Return tokens (n, N, C) of the real frames in the stored dtype and mask (T,), on the CPU."""
    frames, mask = _as_video(item, index)
    size = (frames.shape[-2], frames.shape[-1])
    if size != description.frame_size:
        raise ValueError(
            f"video {index}: frames are {size[0]}x{size[1]} pixels, those of the folder "
            "{}x{}".format(*description.frame_size)
        )
    dtype = getattr(torch, description.stored)
    if not mask.any():
        return torch.zeros(0, description.num_tokens, description.width, dtype=dtype), mask
    with torch.no_grad():
        tokens = encoder.frame_tokens(frames[mask].to(device_of(encoder)))
    stored = tokens.to("cpu", dtype).contiguous()
    if not stored.isfinite().all():
        raise ValueError(
            f"video {index}: tokens up to {tokens.abs().max():.3g} are not finite in {dtype}"
        )
    return stored, mask
