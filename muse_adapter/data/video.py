"""Video files to the frames that text-video retrieval code reads. Needs PyAV (extra ``video``)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class UnreadableVideo(ValueError):
    """A file that gives no frame; the message names the file and the reason."""


def read_frames(
    path: str | os.PathLike[str], num_frames: int, *, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Decode a video and sample ``num_frames`` of its frames uniformly.

    The sampled positions run evenly from the first to the last frame (see
    :func:`sample_positions`). A video with fewer frames gives all it has, then zero frames.
    A stream that breaks off in the middle counts as ending there.

    Args:
        path: the video file, in any format that PyAV's FFmpeg reads.
        num_frames: T, at least 1.
        size: bring the short side to this many pixels and crop the centre square; None keeps
            the video's own height and width.

    Returns:
        Frames ``(T, 3, height, width)``, uint8, RGB, and the frame mask ``(T,)``, bool, True
        for a real frame.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: there is no such file.
        UnreadableVideo: no frame can be decoded.
        ValueError: ``num_frames`` or ``size`` is below 1.
    """
    _check_positive("num_frames", num_frames)
    if size is not None:
        _check_positive("size", size)
    av = _import_av()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such video file: {path}")

    # Containers often state no frame count or a wrong one, and holding every decoded frame of a
    # long video would not fit in memory. So count the packets, which is cheap, and read anew in
    # the rare case that the decoder gives another number of frames.
    expected = _count_packets(av, path)
    frames, found = _decode(av, path, sample_positions(expected, num_frames), size)
    if found != expected:
        frames, found = _decode(av, path, sample_positions(found, num_frames), size)
    if not frames:
        raise UnreadableVideo(f"cannot read {path}: no frame could be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise UnreadableVideo(f"cannot read {path}: frames change their size; pass size=")

    video = torch.zeros(num_frames, *frames[0].shape, dtype=torch.uint8)
    video[: len(frames)] = torch.stack(frames)
    mask = torch.arange(num_frames) < len(frames)
    return video, mask


def sample_positions(num_available: int, num_frames: int) -> list[int]:
    """Positions of a uniform sample: ``i * (n - 1) / (T - 1)``, rounded, halves to the middle.

    The first and the last frame always belong to it, and a reversed video gives the reversed
    sample (a single frame from the exact middle of an even number excepted).

    Args:
        num_available: n, the number of frames there are; with n <= T all of them are taken.
        num_frames: T, the number of frames wanted.

    Returns:
        Ascending positions, ``min(n, T)`` of them.
    """
    if num_available <= num_frames:
        return list(range(num_available))
    if num_frames == 1:
        return [(num_available - 1) // 2]
    last, steps = num_available - 1, num_frames - 1
    # Integers only: the nearest position from the front for the first half, then its mirror.
    first_half = [(2 * i * last + steps) // (2 * steps) for i in range((num_frames + 1) // 2)]
    return first_half + [last - p for p in reversed(first_half[: num_frames // 2])]


def _check_positive(name: str, value: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}")


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError("reading videos needs PyAV: pip install 'muse-adapter[video]'") from error
    return av


def _count_packets(av: ModuleType, path: Path) -> int:
    with _open(av, path) as container:
        try:
            return sum(packet.size > 0 for packet in container.demux(container.streams.video[0]))
        except av.FFmpegError:
            return 0


def _decode(
    av: ModuleType, path: Path, positions: list[int], size: int | None
) -> tuple[list[Tensor], int]:
    """Decode all frames, keep those at ``positions``; also returns how many there were."""
    wanted, kept, count = set(positions), [], 0
    with _open(av, path) as container:
        for frame in _frames_until_error(av, container):
            if count in wanted:
                kept.append(_to_tensor(frame, size))
            count += 1
    return kept, count


def _open(av: ModuleType, path: Path) -> Any:
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise UnreadableVideo(f"cannot read {path}: {error}") from error
    if not container.streams.video:
        container.close()
        raise UnreadableVideo(f"cannot read {path}: it has no video stream")
    return container


def _frames_until_error(av: ModuleType, container: Any) -> Iterator[Any]:
    stream = container.streams.video[0]
    if stream.width * stream.height >= 256 * 256:
        # Starting threads costs more than decoding where the pictures are tiny.
        stream.thread_type = "AUTO"
    else:
        stream.codec_context.thread_count = 1
    try:
        yield from container.decode(stream)
    except av.FFmpegError:
        return


def _to_tensor(frame: Any, size: int | None) -> Tensor:
    rgb = frame.reformat(format="rgb24")
    plane = rgb.planes[0]
    rows = torch.frombuffer(bytearray(plane), dtype=torch.uint8).view(rgb.height, plane.line_size)
    picture = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3).permute(2, 0, 1)
    # Telephones store portrait videos lying down, with the angle to turn them counter-clockwise.
    picture = torch.rot90(picture, round(frame.rotation / 90), dims=(1, 2))
    return picture.contiguous() if size is None else _square(picture, size)


def _square(picture: Tensor, size: int) -> Tensor:
    """Bring the short side to ``size``, then crop the centre: ``(3, h, w) -> (3, size, size)``."""
    height, width = picture.shape[1:]
    short = min(height, width)
    resized = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    if resized != (height, width):
        # Without antialiasing small objects vanish between the sampled pixels.
        picture = F.interpolate(
            picture[None].contiguous(), size=resized, mode="bilinear", antialias=True
        )[0]
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return picture[:, top : top + size, left : left + size].contiguous()
