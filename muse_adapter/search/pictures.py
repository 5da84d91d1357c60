"""Frames of a segment side by side, as one small picture."""

from __future__ import annotations

import os
from fractions import Fraction

import torch
import torch.nn.functional as F
from torch import Tensor

from muse_adapter.data.video.container import import_av
from muse_adapter.data.video.reading import read_frames

HEIGHT, MAX_WIDTH = 90, 640  # of a frame in the picture, in pixels
_GAP = 2  # pixels of white around it


def strip_of(
    video: str | os.PathLike[str], start: float, end: float, *, num_frames: int = 8
) -> bytes:
    """Draw frames from a part of a video side by side.

    Args:
        video: Its file.
        start: Seconds after the first frame.
        end: Seconds after the first frame.
        num_frames: How many frames, fewer if there are fewer.

    Returns:
        A JPEG file.

    Raises:
        ImportError: PyAV is not installed.
        OSError: There is no such file.
        ValueError: It cannot be read.
    """
    frames, mask = read_frames(video, num_frames, start=start, end=end)
    height, width = frames.shape[2:]
    size = HEIGHT, min(MAX_WIDTH, max(1, round(HEIGHT * width / height)))
    shown = [
        F.pad(
            F.interpolate(frame[None], size=size, mode="bilinear", antialias=True)[0],
            (_GAP, _GAP, _GAP, _GAP),
            value=255,
        )
        for frame in frames[mask]
    ]
    return _jpeg(torch.cat(shown, dim=2))


def _jpeg(picture: Tensor) -> bytes:
    """Encode a picture (3, height, width), uint8, RGB."""
    av = import_av()
    pixels = picture.permute(1, 2, 0).contiguous().numpy()
    frame = av.VideoFrame.from_ndarray(pixels, format="rgb24").reformat(format="yuvj420p")
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, "yuvj420p"
    encoder.time_base, encoder.options = Fraction(1), {"qmin": "3", "qmax": "3"}
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))
