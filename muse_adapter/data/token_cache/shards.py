"""Shards: files of some videos each, with the tokens of their real frames and their masks.

The metadata of a shard have the checksum of each video, and that of the folder's probe, so that a
shard of another folder is told apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muse_adapter.data.token_cache.description import PURPOSE, Description
from muse_adapter.files import write_whole
from muse_adapter.tensor_files import checksum, import_safetensors, open_tensors

# Names of the dtypes in the headers of safetensors files.
_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}
_PROBE = "probe"  # its checksum, in the metadata


def write_shard(path: Path, videos: dict[int, tuple[Tensor, Tensor]], probe: str | None) -> None:
    """Write a shard, unless another process has written it meanwhile: that one may be in use.

    Args:
        path: The file.
        videos: By index of the video: tokens (n, N, C) of its n real frames, and mask (T,), bool.
        probe: Checksum of the folder's probe; None: it has none (format 1).
    """
    state, metadata = {}, {} if probe is None else {_PROBE: probe}
    for index, (tokens, mask) in videos.items():
        state[f"{index}.tokens"] = tokens
        state[f"{index}.mask"] = mask
        metadata[str(index)] = checksum({"tokens": tokens, "mask": mask})
    content = import_safetensors(PURPOSE).torch.save(state, metadata=metadata)
    # `safe_open` opens a file by its name twice: replaced in between, the metadata are of one file
    # and the tensors of the other.
    write_whole({path: content}, keep_existing=True)


def open_shard(path: Path) -> Any:
    """Open a shard, memory-mapped: `get_tensor` reads only the tensor it returns."""
    return import_safetensors(PURPOSE).safe_open(path, framework="pt")


def check_shard(path: Path, description: Description, shard: int, probe: str | None) -> None:
    """Check size, names, dtypes, shapes and masks of a shard, but not its tokens.

    Args:
        path: The file.
        description: Of the folder.
        shard: Number of the shard.
        probe: Checksum of the folder's probe; None: unknown.

    Raises:
        ValueError: The file does not match the description; the message says what to do.
    """
    try:
        with open_tensors(path) as file:
            problem = _problem(file, description, shard, probe)
    except ValueError as error:
        problem = str(error)
    if problem:
        raise _damaged(path, problem)


def read_video(file: Any, index: int) -> tuple[Tensor, Tensor]:
    """Read one video of an open shard.

    Returns:
        Tokens (n, N, C) of its n real frames, in mapped memory, and mask (T,).
    """
    return file.get_tensor(f"{index}.tokens"), file.get_tensor(f"{index}.mask")


def check_videos(path: Path, videos: range) -> None:
    """Compare all videos of a shard with their checksums, see `check_video`."""
    with open_shard(path) as file:
        for index in videos:
            check_video(path, file, index, *read_video(file, index))


def check_video(path: Path, file: Any, index: int, tokens: Tensor, mask: Tensor) -> None:
    """Compare a video with its checksum; one without (format 1) must at least be finite.

    Raises:
        ValueError: It is damaged; the message says what to do.
    """
    expected = (file.metadata() or {}).get(str(index))
    if expected is None:
        if not tokens.isfinite().all():
            raise _damaged(path, f"video {index} has tokens that are not finite")
        return
    found = checksum({"tokens": tokens, "mask": mask})
    if found != expected:
        raise _damaged(
            path, f"video {index} has the checksum {found}, but was written with {expected}"
        )


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(
        f"{str(path)!r} is damaged ({problem}): delete it and call cache_tokens again, which "
        "rewrites it and keeps the other files"
    )


def _problem(file: Any, description: Description, shard: int, probe: str | None) -> str:
    """Return the first mismatch with the description, or an empty string."""
    videos = description.videos_of(shard)
    names = set(file.keys())
    # Their number first: a damaged description may speak of any number of videos.
    if len(names) != 2 * len(videos) or names != {
        f"{index}.{part}" for index in videos for part in ("tokens", "mask")
    }:
        return f"it must contain the videos {videos.start} to {videos.stop - 1}"
    if description.format > 1:
        metadata = file.metadata() or {}
        if set(metadata) != {_PROBE, *map(str, videos)}:
            return "it must have a checksum of every video"
        if probe is not None and metadata[_PROBE] != probe:
            return "it is of another folder, or the folder's probe was replaced"
    for index in videos:
        mask = file.get_tensor(f"{index}.mask")
        if mask.dtype != torch.bool or mask.dim() != 1:
            return f"the mask of video {index} is {mask.dtype} of shape {tuple(mask.shape)}"
        tokens = file.get_slice(f"{index}.tokens")
        shape, dtype = tuple(tokens.get_shape()), tokens.get_dtype()
        expected = (int(mask.sum()), description.num_tokens, description.width)
        if shape != expected or dtype != _NAMES[description.stored]:
            return (
                f"video {index} has tokens of shape {shape} and dtype {dtype}, expected {expected} "
                f"and {_NAMES[description.stored]}"
            )
    return ""
