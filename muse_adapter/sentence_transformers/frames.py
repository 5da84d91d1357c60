"""Frames of one video or image, in any form in which sentence-transformers takes it."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from muse_adapter.data.video import read_frames
from muse_adapter.data.video.sampling import Sampling


def video_frames(video: Any, sampling: Sampling) -> list[Tensor]:
    """Sample the frames of a video.

    Args:
        video: Path of a file; (T, 3, height, width) or (T, height, width, 3) as a tensor or array;
            a sequence of images; a decoder of torchcodec; or a mapping with one of these as its
            "array" and the "video_metadata" of sentence-transformers.
        sampling: Which frames.

    Returns:
        At most `sampling.num_frames` frames, each (3, height, width), uint8, RGB.

    Raises:
        ValueError: The video cannot be read, or has another form. Reading a file or an image raises
            OSError too.
    """
    metadata: Mapping[str, Any] = {}
    if isinstance(video, Mapping):
        metadata = video.get("video_metadata") or {}
        if "array" not in video:
            raise ValueError(f'expected a video as "array", got {", ".join(map(str, video))}')
        video = video["array"]
    if isinstance(video, (str, os.PathLike)):
        _refuse_url(video)
        frames, mask = read_frames(
            video, sampling.num_frames, start=sampling.start, end=sampling.end, fps=sampling.fps
        )
        return list(frames[mask])
    if hasattr(video, "get_frames_at"):  # torchcodec's VideoDecoder decodes only what is asked for
        count, fps = video.metadata.num_frames, video.metadata.average_fps
        if count is None:
            raise ValueError("its decoder does not tell the number of its frames")
        positions = _positions(count, {"fps": fps}, sampling)
        try:
            decoded = video.get_frames_at(indices=positions).data
        except RuntimeError as error:
            raise ValueError(f"its decoder failed: {error}") from error
        return list(_channels_first(decoded))
    if isinstance(video, (Tensor, np.ndarray)):
        clip = video[0] if video.ndim == 5 and len(video) == 1 else video
        if clip.ndim != 4:
            raise ValueError(
                "expected one video (T, 3, height, width) or (T, height, width, 3), got shape "
                f"{tuple(clip.shape)}: pass several videos as a list"
            )
        return list(_channels_first(_as_tensor(clip[_positions(len(clip), metadata, sampling)])))
    if isinstance(video, Sequence):
        return [image_frame(video[i]) for i in _positions(len(video), metadata, sampling)]
    raise ValueError(f"expected a video, got {type(video).__name__}")


def image_frame(image: Any) -> Tensor:
    """Read an image.

    Args:
        image: Path of a file, a PIL image, or (3, height, width) or (height, width, 3) as a tensor
            or array.

    Returns:
        (3, height, width), uint8, RGB, upright.

    Raises:
        OSError: The file cannot be read.
        ValueError: The image has another form.
    """
    if isinstance(image, (str, os.PathLike)):
        _refuse_url(image)
        try:
            with Image.open(Path(image)) as opened:
                return image_frame(opened)
        except Image.DecompressionBombError as error:  # no OSError
            raise ValueError(str(error)) from error
    if isinstance(image, Image.Image):
        upright = ImageOps.exif_transpose(image)
        return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
    if isinstance(image, (Tensor, np.ndarray)) and image.ndim == 3:
        return _channels_first(_as_tensor(image)[None])[0]
    raise ValueError(
        "expected an image: a path, a PIL image, (3, height, width) or (height, width, 3), got "
        f"{type(image).__name__} {tuple(getattr(image, 'shape', ()))}"
    )


def _positions(count: int, metadata: Mapping[str, Any], sampling: Sampling) -> list[int]:
    """Return the sampled positions among `count` frames in memory.

    Raises:
        ValueError: There is none, or times are asked for and unknown.
    """
    if count == 0:
        raise ValueError("a video without frames")
    by_time = any(value is not None for value in (sampling.fps, sampling.start, sampling.end))
    fps = metadata.get("fps")
    if by_time and not fps:
        raise ValueError(
            "sampling by time (fps, start, end) needs the frame rate of a video in memory: "
            '{"array": frames, "video_metadata": {"fps": 25.0}}'
        )
    # Frames that were sampled before tell their places in the video.
    places = metadata.get("frames_indices")
    places = list(range(count)) if places is None else [int(place) for place in places]
    if len(places) != count:
        raise ValueError(f"{len(places)} frames_indices for {count} frames")
    times = [(place - places[0]) / float(fps or 1) for place in places]
    positions = sampling.positions(times, times[-1] + 1 / float(fps or 1))
    if not positions:
        raise ValueError(f"it ends before start={sampling.start}")
    return positions


def _as_tensor(values: Tensor | np.ndarray) -> Tensor:
    """Convert arrays that are only read, or reversed, such as `frames[..., ::-1]`, too."""
    if isinstance(values, Tensor):
        return values
    try:
        return torch.from_numpy(np.require(values, requirements=["C", "W"]))
    except TypeError as error:
        raise ValueError(f"expected frames as numbers, got {values.dtype}") from error


def _channels_first(frames: Tensor) -> Tensor:
    """Bring frames (n, 3, h, w) or (n, h, w, 3) to (n, 3, h, w), uint8."""
    if frames.shape[1] != 3:
        if frames.shape[-1] != 3:
            raise ValueError(f"expected frames with 3 channels, got shape {tuple(frames.shape)}")
        frames = frames.movedim(-1, 1)
    if frames.dtype == torch.uint8:
        return frames
    if not frames.is_floating_point():
        raise ValueError(f"expected frames as uint8, or floating point in 0..1, got {frames.dtype}")
    if not bool(((frames >= 0) & (frames <= 1)).all()):
        raise ValueError(
            "frames in floating point must be in 0..1, got values from "
            f"{float(frames.min()):g} to {float(frames.max()):g}: pass uint8 for 0..255"
        )
    return (frames * 255).round().to(torch.uint8)


def _refuse_url(path: str | os.PathLike[str]) -> None:
    if str(path).startswith(("http://", "https://", "data:")):
        raise ValueError(f"{str(path)[:80]} is an address: download it and pass the file")
