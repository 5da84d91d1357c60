"""Read frames of video files. Needs PyAV (extra `video`)."""

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
    """A file from which no frame can be read; the message names the file and the reason."""


def read_frames(
    path: str | os.PathLike[str], num_frames: int, *, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Decode a video and sample frames uniformly from the first to the last.

    A video with fewer than `num_frames` frames is padded with zero frames. A stream that breaks off
    ends at its last decodable frame.

    Args:
        path: The video file, in any format that PyAV's FFmpeg reads.
        num_frames: T, at least 1.
        size: Resize the short side to this many pixels and crop the centre square; None keeps the
            height and width of the video.

    Returns:
        Frames (T, 3, height, width), uint8, RGB, and the frame mask (T,), bool, True for a real
        frame.

    Raises:
        ImportError: PyAV is not installed.
        FileNotFoundError: The file does not exist.
        UnreadableVideo: No frame can be decoded.
        ValueError: `num_frames` or `size` is below 1.
    """
    _check_positive("num_frames", num_frames)
    if size is not None:
        _check_positive("size", size)
    av = _import_av()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such video file: {path}")

    # The frame count in a container is often missing or wrong, and all decoded frames of a long
    # video do not fit in memory. So count the packets, which is cheap, and decode again in the
    # rare case that the decoder returns another number of frames.
    expected = _count_packets(av, path)
    frames, count = _decode(av, path, sample_positions(expected, num_frames), size)
    if count != expected:
        frames, _ = _decode(av, path, sample_positions(count, num_frames), size)
    if not frames:
        raise UnreadableVideo(f"cannot read {path}: no frame could be decoded")
    if len({frame.shape for frame in frames}) > 1:
        raise UnreadableVideo(f"cannot read {path}: its frames differ in size; pass size=")

    video = torch.zeros(num_frames, *frames[0].shape, dtype=torch.uint8)
    video[: len(frames)] = torch.stack(frames)
    mask = torch.arange(num_frames) < len(frames)
    return video, mask


def sample_positions(num_available: int, num_frames: int) -> list[int]:
    """Compute the positions of a uniform sample of n frames.

    They are `i * (n - 1) / (T - 1)`, rounded, halves towards the middle: the first and the last
    frame are included, and a reversed video gives the reversed sample (except for the middle one of
    an odd number of positions where n is even).

    Args:
        num_available: n, the number of frames of the video; if n <= T, all are taken.
        num_frames: T, the number of frames to sample.

    Returns:
        Ascending positions, `min(n, T)` of them.
    """
    if num_available <= num_frames:
        return list(range(num_available))
    if num_frames == 1:
        return [(num_available - 1) // 2]
    last, steps = num_available - 1, num_frames - 1
    # In integers: the nearest positions of the first half, ties to the right, then its mirror.
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
    """Decode all frames; return those at `positions` and the number of all frames."""
    selected, frames, count = set(positions), [], 0
    with _open(av, path) as container:
        for frame in _frames_until_error(av, container):
            if count in selected:
                frames.append(_to_tensor(frame, size))
            count += 1
    return frames, count


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
        # For tiny frames starting threads costs more than decoding.
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
    image = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3).permute(2, 0, 1)
    # Phones store portrait videos in landscape, with the counter-clockwise angle to display them.
    image = torch.rot90(image, round(frame.rotation / 90), dims=(1, 2))
    return image.contiguous() if size is None else _resize_and_crop(image, size)


def _resize_and_crop(image: Tensor, size: int) -> Tensor:
    """Resize the short side to `size`, then crop the centre: (3, h, w) -> (3, size, size)."""
    height, width = image.shape[1:]
    short = min(height, width)
    resized = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    if resized != (height, width):
        # Without antialiasing small objects vanish between the sampled pixels.
        image = F.interpolate(
            image[None].contiguous(), size=resized, mode="bilinear", antialias=True
        )[0]
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return image[:, top : top + size, left : left + size].contiguous()
