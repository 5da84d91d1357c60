"""Validate the arguments of `VideoEncoder`; messages state what was expected and what was given."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from muse_adapter.backbones.find import CUSTOM_TOKENS
from muse_adapter.backbones.tokens import PatchTokens
from muse_adapter.models.muse import MultiScaleMamba


def check_tokens_fn(
    backbone: nn.Module, head: nn.Module | None, tokens: Callable[[Tensor], Tensor]
) -> None:
    """Check that `tokens` is a function and comes with a head.

    Raises:
        TypeError: `tokens` is not callable, or `backbone` is not a module.
        ValueError: `head` is None.
    """
    if not callable(tokens):
        raise TypeError(f"tokens must be a function of frames, got {type(tokens).__name__}")
    if not isinstance(backbone, nn.Module):
        raise TypeError(f"backbone must be an nn.Module, got {type(backbone).__name__}")
    if head is None:
        raise ValueError(
            "with tokens= the head must be given, because its width and number of prefix tokens "
            f"cannot be inferred from a function:\n{CUSTOM_TOKENS}"
        )


def check_options(head: nn.Module | None, frames_per_slice: int | None) -> None:
    """Check that `head` is a module and `frames_per_slice` a positive integer, if given.

    Raises:
        TypeError: One of them is of the wrong type.
        ValueError: `frames_per_slice` is below 1.
    """
    if head is not None and not isinstance(head, nn.Module):
        raise TypeError(f"head must be an nn.Module or None, got {type(head).__name__}")
    if frames_per_slice is None:
        return
    if isinstance(frames_per_slice, bool) or not isinstance(frames_per_slice, int):
        raise TypeError(f"frames_per_slice must be an int or None, got {frames_per_slice!r}")
    if frames_per_slice < 1:
        raise ValueError(f"frames_per_slice must be at least 1, got {frames_per_slice}")


def check_head_fits(head: nn.Module, found: PatchTokens) -> None:
    """Check that a head has the width and the number of prefix tokens of its backbone.

    Raises:
        ValueError: It has not; heads other than `MultiScaleMamba` are not checked.
    """
    if not isinstance(head, MultiScaleMamba):
        return
    config = head.config
    in_dim = config.dim if config.in_dim is None else config.in_dim
    if in_dim != found.width:
        raise ValueError(
            f"head takes tokens of width {in_dim}, but those of this {found.family} have width "
            f"{found.width}: MultiScaleMamba(dim={config.dim}, in_dim={found.width}) projects them"
        )
    if config.num_prefix_tokens not in (0, found.num_prefix_tokens):
        raise ValueError(
            f"head has num_prefix_tokens={config.num_prefix_tokens}, but this {found.family} has "
            f"{found.num_prefix_tokens}; build the head with that number, or with 0 to use the "
            "patches alone"
        )


def check_custom_tokens(tokens: Tensor, frames: Tensor) -> None:
    """Check the tokens that a custom function returned.

    Args:
        tokens: Its result, expected to be (n, N, C).
        frames: Its input (n, 3, height, width).

    Raises:
        TypeError: The result is not a floating-point tensor.
        ValueError: Its shape is wrong.
    """
    if not isinstance(tokens, Tensor) or not tokens.is_floating_point():
        given = tokens.dtype if isinstance(tokens, Tensor) else type(tokens).__name__
        raise TypeError(f"the tokens= function must return floating-point tokens, got {given}")
    if tokens.ndim != 3 or len(tokens) != len(frames):
        raise ValueError(
            f"the tokens= function must return tokens (n, N, C) with n = {len(frames)} frames, "
            f"got shape {tuple(tokens.shape)}"
        )


def check_frames(frames: Tensor, frame_mask: Tensor | None) -> None:
    """Check the inputs of an encoder.

    Args:
        frames: Expected to be (B, T, 3, height, width), floating point.
        frame_mask: Expected to be (B, T), or None.

    Raises:
        TypeError: One of them is not a tensor, or `frames` is not floating point.
        ValueError: A shape is wrong.
    """
    if not isinstance(frames, Tensor):
        raise TypeError(f"frames must be a tensor, got {type(frames).__name__}")
    if frames.ndim != 5:
        raise ValueError(
            f"frames must have shape (B, T, 3, height, width), got {tuple(frames.shape)}"
        )
    if not frames.is_floating_point():
        raise TypeError(
            f"frames must be floating point, got {frames.dtype}: scale and normalise them as the "
            "backbone's processor does, usually (frames / 255 - mean) / std"
        )
    videos, length, channels = frames.shape[:3]
    if videos == 0 or length == 0:
        raise ValueError(
            f"frames must contain at least one video and one frame, got (B, T) = {(videos, length)}"
        )
    if channels != 3:
        hint = "; channels must come before height and width" if frames.shape[-1] == 3 else ""
        raise ValueError(
            f"frames must have 3 channels, (B, T, 3, height, width), "
            f"got {tuple(frames.shape)}{hint}"
        )
    if frame_mask is None:
        return
    if not isinstance(frame_mask, Tensor):
        raise TypeError(f"frame_mask must be a tensor, got {type(frame_mask).__name__}")
    if frame_mask.shape != (videos, length):
        raise ValueError(
            f"frame_mask must have shape (B, T) = {(videos, length)}, got {tuple(frame_mask.shape)}"
        )
