"""Inputs of the head: patch tokens and frame masks, checked and brought to one shape."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from muse_adapter.ops.checks import values_can_be_asked


def as_video_tokens(tokens: Tensor, num_frames: int | None) -> Tensor:
    """Bring tokens to (B, T, N, C).

    Args:
        tokens: (B, T, N, C), or (B*T, N, C) with `num_frames`.
        num_frames: T, for three-dimensional tokens only.

    Returns:
        (B, T, N, C).

    Raises:
        TypeError: The tokens are not of floating type.
        ValueError: The tokens have another rank or a size 0, or `num_frames` does not fit them.
    """
    if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
        given = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"tokens must be a tensor of floating type, got {given}")
    shape = tuple(tokens.shape)
    if tokens.dim() not in (3, 4):
        raise ValueError(f"tokens must have shape (B, T, N, C) or (B*T, N, C), got {shape}")
    if 0 in shape:
        raise ValueError(f"tokens must have no size 0, got {shape}")
    if tokens.dim() == 4:
        if num_frames is not None:
            raise ValueError(
                f"num_frames is for tokens of shape (B*T, N, C) only: tokens of shape {shape} have "
                f"T = {shape[1]}, got num_frames={num_frames}"
            )
        return tokens
    if num_frames is None:
        raise ValueError(f"tokens of shape (B*T, N, C) = {shape} need num_frames=T")
    if not isinstance(num_frames, int) or num_frames < 1 or shape[0] % num_frames:
        raise ValueError(f"num_frames must divide B*T = {shape[0]}, got {num_frames}")
    return tokens.unflatten(0, (-1, num_frames))


def patch_grid(
    num_tokens: int, num_prefix_tokens: int, grid: tuple[int, int] | None
) -> tuple[int, int]:
    """Determine the patch grid of a frame with N = num_prefix_tokens + H*W tokens.

    Args:
        num_tokens: N.
        num_prefix_tokens: Tokens before the patches.
        grid: (H, W); None: the grid is square.

    Returns:
        (H, W).

    Raises:
        TypeError: `grid` is not a pair of ints.
        ValueError: There is no patch token, or the number of patches is not a square or not that of
            `grid`.
    """
    patches = num_tokens - num_prefix_tokens
    if patches < 1:
        raise ValueError(
            f"expected {num_prefix_tokens} prefix tokens and at least one patch token per frame, "
            f"got N = {num_tokens} tokens"
        )
    if grid is None:
        side = 1
        while side * side < patches:  # a symbolic number has no isqrt
            side += 1
        if side * side != patches:
            raise ValueError(
                f"N = {num_tokens} tokens are not {num_prefix_tokens} prefix tokens and a square "
                f"grid ({patches} patches): give grid=(H, W), or another num_prefix_tokens in the "
                "config"
            )
        return side, side
    if not (isinstance(grid, (tuple, list)) and [type(side) for side in grid] == [int, int]):
        raise TypeError(f"grid must be a pair of ints (H, W), got {grid!r}")
    height, width = grid
    if height < 1 or width < 1 or height * width != patches:
        raise ValueError(
            f"grid=({height}, {width}) does not fit N = {num_tokens} tokens: "
            f"{num_prefix_tokens} prefix tokens leave {patches} patches"
        )
    return height, width


def as_frame_mask(
    frame_mask: Tensor | None,
    shape: tuple[int, int],
    device: torch.device,
    *,
    warn_empty: bool = True,
) -> Tensor | None:
    """Bring a frame mask to bool.

    Values are checked only on the CPU in eager mode: elsewhere this would synchronise the device or
    break the graph.

    Args:
        frame_mask: (B, T), True or 1 for a real frame; None: all frames are real.
        shape: (B, T) of the tokens.
        device: Device of the tokens.
        warn_empty: Warn of videos without a valid frame.

    Returns:
        (B, T) bool, or None if all frames are known to be real.

    Raises:
        TypeError: The mask is not a tensor.
        ValueError: The mask has another shape, is on another device, or has values other than 0 and
            1.
    """
    if frame_mask is None:
        return None
    if not isinstance(frame_mask, Tensor):
        raise TypeError(f"frame_mask must be a tensor, got {type(frame_mask).__name__}")
    if tuple(frame_mask.shape) != tuple(shape):
        raise ValueError(
            f"frame_mask must have shape (B, T) = {shape}, got {tuple(frame_mask.shape)}"
        )
    if frame_mask.device != device:
        raise ValueError(
            f"frame_mask must be on the device of the tokens, {device}, got {frame_mask.device}"
        )
    mask = frame_mask.to(torch.bool)
    if not values_can_be_asked(mask):
        return mask
    if not torch.equal(mask.to(frame_mask.dtype), frame_mask):
        wrong = frame_mask[mask.to(frame_mask.dtype) != frame_mask].unique()[:5].tolist()
        raise ValueError(
            f"frame_mask must hold only 0 and 1 (or False and True), got values {wrong}"
        )
    if mask.all():
        return None
    empty = torch.nonzero(~mask.any(1)).flatten().tolist() if warn_empty else []
    if empty:
        warnings.warn(f"videos {empty} have no valid frame: their embedding is zero", stacklevel=2)
    return mask
