"""Check that an encoder is the one that filled a folder, by its tokens of one fixed frame."""

from __future__ import annotations

import math
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from muse_adapter.data.token_cache.description import PROBE_NAME, Description
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.tensor_files import CHECKSUM, read_metadata, read_tensors

# Relative to the norm of the tokens. Another device, TF32 or other kernels stay below these; in
# half precision every layer rounds.
TOLERANCE = {"float64": 1e-6, "float32": 1e-3, "float16": 1e-2, "bfloat16": 5e-2}


def type_name(dtype: torch.dtype) -> str:
    """Return the name of a dtype, such as "float32"."""
    return str(dtype).removeprefix("torch.")


def device_of(encoder: VideoEncoder) -> torch.device:
    """Return the device of the backbone's weights; the CPU if it has none."""
    tensors = chain(encoder.backbone.parameters(), encoder.backbone.buffers())
    return next((tensor.device for tensor in tensors), torch.device("cpu"))


def check_frozen(encoder: VideoEncoder) -> None:
    """Check that this is a `VideoEncoder` with a frozen backbone.

    Raises:
        TypeError: It is not a `VideoEncoder`.
        ValueError: Its backbone is not frozen.
    """
    if not isinstance(encoder, VideoEncoder):
        raise TypeError(f"encoder must be a VideoEncoder, got {type(encoder).__name__}")
    if not encoder.frozen:
        raise ValueError(
            "encoder must have a frozen backbone, because training changes its tokens: "
            "VideoEncoder(backbone, freeze=True)"
        )


def run_probe(encoder: VideoEncoder, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Encode a fixed frame.

    Args:
        encoder: The encoder.
        size: Height and width of the frame.
        dtype: Dtype of the frame.

    Returns:
        Tokens (N, C), on the CPU.
    """
    count = 3 * math.prod(size)
    frame = torch.arange(count, dtype=torch.float64).mul(0.37).sin().view(1, 3, *size)
    with torch.no_grad():
        tokens = encoder.frame_tokens(frame.to(device_of(encoder), dtype))
    return tokens[0].cpu().contiguous()


def read_probe(folder: Path, description: Description) -> Tensor:
    """Read the tokens (N, C) of the fixed frame that are stored in a folder.

    Raises:
        ValueError: The file is missing or damaged.
    """
    path = folder / PROBE_NAME
    try:
        tensors, _ = read_tensors(path, checksum_required=description.format > 1)
    except ValueError as error:
        raise ValueError(f"{str(path)!r} is missing or damaged: {error}") from error
    shape = description.num_tokens, description.width
    tokens = tensors.get("tokens")
    if (
        tokens is None
        or tuple(tokens.shape) != shape
        or type_name(tokens.dtype) != description.computed
        or not tokens.isfinite().all()
    ):
        raise ValueError(
            f"{str(path)!r} is missing or damaged: it must contain finite tokens of shape {shape} "
            f"in {description.computed}"
        )
    return tokens


def probe_checksum(folder: Path) -> str | None:
    """Return the checksum of the stored tokens, by which shards know their folder; None: none.

    Raises:
        ValueError: The file is damaged.
    """
    path = folder / PROBE_NAME
    return read_metadata(path).get(CHECKSUM) if path.exists() else None


def check_probe(tokens: Tensor, stored: Tensor) -> None:
    """Compare tokens of the fixed frame with the stored ones, both (N, C).

    Raises:
        ValueError: They differ by more than devices and kernels explain.
    """
    given, expected = (f"{tuple(t.shape)}, {type_name(t.dtype)}" for t in (tokens, stored))
    if given != expected:
        raise ValueError(
            "the tokens in the folder come from another encoder, or from this one in another "
            f"precision: those of a frame are {expected} in the folder and {given} now"
        )
    error = float((tokens.double() - stored.double()).norm() / stored.double().norm())
    # "not <=" also catches NaN.
    if not error <= TOLERANCE[type_name(tokens.dtype)]:
        raise ValueError(
            "the tokens in the folder come from another encoder (other weights or another "
            f"implementation): those of the same frame differ by {error:.1%} of their norm"
        )
