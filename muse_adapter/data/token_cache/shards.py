"""One file of tokens: some videos, each with the tokens of its real frames and its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from muse_adapter.data.token_cache.description import PURPOSE, Description
from muse_adapter.files import import_safetensors, write_whole

# As safetensors' headers name the types.
_NAMES = {"float16": "F16", "bfloat16": "BF16", "float32": "F32", "float64": "F64"}


def write_shard(path: Path, videos: dict[int, tuple[Tensor, Tensor]]) -> None:
    """Writes videos by index, each as tokens (n, N, C) of its n real frames and mask (T,), bool."""
    state = {}
    for index, (tokens, mask) in videos.items():
        state[f"{index}.tokens"] = tokens
        state[f"{index}.mask"] = mask
    write_whole({path: import_safetensors(PURPOSE).torch.save(state)})


def open_shard(path: Path) -> Any:
    """Opens a file, memory-mapped: `get_tensor` reads no more than what it is asked for."""
    return import_safetensors(PURPOSE).safe_open(path, framework="pt")


def check_shard(path: Path, description: Description, shard: int) -> None:
    """Looks at a file's size, names, types, shapes and masks, not at its tokens.

    Raises:
        ValueError: It is not what the description says; the message tells what to do.
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
            "makes it anew and leaves the other files as they are"
        )


def read_video(file: Any, index: int) -> tuple[Tensor, Tensor]:
    """Tokens (n, N, C) of the real frames, in the mapped memory, and mask (T,), of one video."""
    return file.get_tensor(f"{index}.tokens"), file.get_tensor(f"{index}.mask")


def _problem(file: Any, description: Description, shard: int) -> str:
    videos = description.videos_of(shard)
    wanted = {f"{index}.{part}" for index in videos for part in ("tokens", "mask")}
    if set(file.keys()) != wanted:
        return f"it must hold the videos {videos.start} to {videos.stop - 1}"
    for index in videos:
        mask = file.get_tensor(f"{index}.mask")
        if mask.dtype != torch.bool or mask.dim() != 1:
            return f"the mask of video {index} is {mask.dtype} of shape {tuple(mask.shape)}"
        tokens = file.get_slice(f"{index}.tokens")
        shape, dtype = tuple(tokens.get_shape()), tokens.get_dtype()
        expected = (int(mask.sum()), description.num_tokens, description.width)
        if shape != expected or dtype != _NAMES[description.stored]:
            return (
                f"video {index} has tokens of shape {shape} and type {dtype}, expected {expected} "
                f"and {_NAMES[description.stored]}"
            )
    return ""
