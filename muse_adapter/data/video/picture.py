"""A decoded frame as an RGB tensor, upright and resized."""

from __future__ import annotations

import struct
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def to_tensor(frame: Any, size: int | None) -> Tensor:
    """Convert a frame as a player shows it.

    Args:
        frame: PyAV's frame, of any pixel format; its colour space and range are followed.
        size: Resize the short side to this and crop the centre square; None: neither.

    Returns:
        RGB (3, height, width), uint8.
    """
    # Each frame has a converter of its own: to start its threads takes longer than it saves.
    rgb = frame.reformat(format="rgb24", threads=1)
    plane = rgb.planes[0]
    rows = torch.frombuffer(bytearray(plane), dtype=torch.uint8).view(rgb.height, plane.line_size)
    image = rows[:, : 3 * rgb.width].reshape(rgb.height, rgb.width, 3).permute(2, 0, 1)
    image = _contiguous(_upright(image, frame))
    return image if size is None else _resize_and_crop(image, size)


def _upright(image: Tensor, frame: Any) -> Tensor:
    """Apply the display matrix, which phones store instead of turning or mirroring pixels."""
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV reads all side data, and refuses kinds that it has no name for
        return torch.rot90(image, round(frame.rotation / 90), (1, 2))  # no word of mirrors
    if matrix is None:
        return image
    # x' = a x + c y and y' = b x + d y (ISO 14496-12, 8.3.2); y points down.
    a, b, _, c, d = struct.unpack("=9i", bytes(matrix))[:5]
    if abs(b) > abs(a):
        image, a, d = image.transpose(1, 2), c, b
    axes = [axis for axis, sign in ((2, a), (1, d)) if sign < 0]
    return image.flip(axes) if axes else image


def _resize_and_crop(image: Tensor, size: int) -> Tensor:
    """Resize the short side to `size`, then crop the centre: (3, h, w) -> (3, size, size)."""
    height, width = image.shape[1:]
    short = min(height, width)
    resized = (max(size, round(height * size / short)), max(size, round(width * size / short)))
    if resized != (height, width):
        # Without antialiasing small objects vanish between the sampled pixels.
        image = F.interpolate(image[None], size=resized, mode="bilinear", antialias=True)[0]
    top, left = (resized[0] - size) // 2, (resized[1] - size) // 2
    return _contiguous(image[:, top : top + size, left : left + size])


def _contiguous(image: Tensor) -> Tensor:
    """Copy with NumPy: torch would wake its threads for each frame, slow beside busy decoders."""
    return torch.from_numpy(image.numpy().copy())
