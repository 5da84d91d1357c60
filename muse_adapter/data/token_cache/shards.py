"""Shards: files of some videos each, with the tokens of their real frames and their masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muse_adapter.data.token_cache.description import PURPOSE, Description
from muse_adapter.files import import_safetensors, write_whole

# Names of the dtypes in the headers of safetensors files.
_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def write_shard(path: Path, videos: dict[int, tuple[Tensor, Tensor]]) -> None:
    """Write a shard.

    Args:
        path: The file.
        videos: By index of the video: tokens (n, N, C) of its n real frames, and mask (T,), bool.
    """
    state = {}
    for index, (tokens, mask) in videos.items():
        state[f"{index}.tokens"] = tokens
        state[f"{index}.mask"] = mask
    write_whole({path: import_safetensors(PURPOSE).torch.save(state)})


def open_shard(path: Path) -> Any:
    """Open a shard, memory-mapped: `get_tensor` reads only the tensor it returns."""
    return import_safetensors(PURPOSE).safe_open(path, framework="pt")


def check_shard(path: Path, description: Description, shard: int) -> None:
    """Check size, names, dtypes, shapes and masks of a shard, but not its tokens.

    Raises:
        ValueError: The file does not match the description; the message says what to do.
    """
    safetensors = import_safetensors(PURPOSE)
    try:
        with open_shard(path) as file:
            problem = _problem(file, description, shard)
    except (safetensors.SafetensorError, OSError) as error:
        problem = str(error)
    if problem:
        raise ValueError(
            f"{str(path)!r} is damaged ({problem}): delete it and call cache_tokens again, which "
            "rewrites it and keeps the other files"
        )


def read_video(file: Any, index: int) -> tuple[Tensor, Tensor]:
    """Read one video of an open shard.

    Returns:
        Tokens (n, N, C) of its n real frames, in mapped memory, and mask (T,).
    """
    return file.get_tensor(f"{index}.tokens"), file.get_tensor(f"{index}.mask")


def _problem(file: Any, description: Description, shard: int) -> str:
    """Return the first mismatch with the description, or an empty string."""
    videos = description.videos_of(shard)
    expected_names = {f"{index}.{part}" for index in videos for part in ("tokens", "mask")}
    if set(file.keys()) != expected_names:
        return f"it must contain the videos {videos.start} to {videos.stop - 1}"
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
