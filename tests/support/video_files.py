"""Small video files, written with PyAV, whose frames tell their positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from torch import Tensor

LEVEL_STEP = 9  # difference of grey levels between frames; coding changes a level by up to 2
FINE = {"qmin": "1", "qmax": "2"}  # little loss, with FFmpeg's own encoders


def write_video(
    path: Path,
    frames: Sequence[np.ndarray],
    codec: str = "mpeg4",
    *,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    stamps: Sequence[int] | None = None,
    rate: int = 8,
    muxer: dict[str, str] | None = None,
    **settings: Any,
) -> Path:
    """Write RGB frames (height, width, 3), skipping the test where the encoder is missing.

    Args:
        path: The file; its suffix chooses the container.
        frames: The pictures.
        codec: Name of the encoder.
        pix_fmt: Pixel format of the file.
        options: Of the encoder.
        stamps: Time stamps in milliseconds (None: at `rate`).
        rate: Frames a second.
        muxer: Options of the container.
        settings: Attributes of the codec context.
    """
    need_encoder(codec)
    with av.open(str(path), "w", options=muxer) as container:
        stream = container.add_stream(
            codec, rate=rate, options=FINE if options is None else options
        )
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for name, value in settings.items():
            setattr(stream.codec_context, name, value)
        if stamps is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            if stamps is not None:
                frame.pts, frame.time_base = stamps[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def need_encoder(codec: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no encoder {codec}")


def grey_frames(count: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Make frames of which frame i has the uniform grey level 20 + LEVEL_STEP * i."""
    levels = (20 + LEVEL_STEP * np.arange(count)).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3))


def grey_video(path: Path, count: int, height: int = 32, width: int = 48, **settings: Any) -> Path:
    """Write a video of `grey_frames`."""
    return write_video(path, grey_frames(count, height, width), **settings)


def positions_in(frames: Tensor) -> list[int]:
    """Return the positions of frames of `grey_video`."""
    return [round((float(frame.float().mean()) - 20) / LEVEL_STEP) for frame in frames]


def moving_frames(count: int, height: int = 64, width: int = 64) -> np.ndarray:
    """Make frames of a moving coloured pattern, so that encoders predict them from each other."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    picture = blocks.repeat(8, axis=0).repeat(8, axis=1)
    return np.stack([np.roll(picture, (i, 2 * i), axis=(0, 1)) for i in range(count)])


def packets_of(path: Path) -> list[tuple[int, int]]:
    """Return position in the file and size of all packets."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]


def damage(path: Path, *numbers: int) -> Path:
    """Overwrite packets of a file by noise."""
    content = bytearray(path.read_bytes())
    rng = np.random.default_rng(0)
    packets = packets_of(path)
    for number in numbers:
        start, size = packets[number]
        content[start : start + size] = rng.integers(0, 256, size, dtype=np.uint8).tobytes()
    path.write_bytes(content)
    return path


def edit(path: Path, change: Callable[[bytearray], None]) -> Path:
    """Change the bytes of a file in place."""
    content = bytearray(path.read_bytes())
    change(content)
    path.write_bytes(content)
    return path
