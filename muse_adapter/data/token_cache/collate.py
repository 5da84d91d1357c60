"""Batches of cached videos of different lengths."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def collate_tokens(videos: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Pad videos to the longest of a batch; the `collate_fn` of a `DataLoader` of `CachedTokens`.

    Args:
        videos: Pairs of tokens (T, N, C) and mask (T,), with N and C in common.

    Returns:
        Tokens (B, T, N, C), zeros behind the end of a video, and mask (B, T), False there.

    Raises:
        ValueError: There is no video, the tokens differ in N or C, or a mask is not of its video.
    """
    if not videos:
        raise ValueError("expected at least one video in a batch, got none")
    first = videos[0][0]
    for index, (tokens, mask) in enumerate(videos):
        if tokens.ndim != 3 or tokens.shape[1:] != first.shape[1:]:
            raise ValueError(
                f"videos of a batch must have tokens (T, N, C) with the same N and C, got "
                f"{tuple(first.shape)} for the first and {tuple(tokens.shape)} for video {index}"
            )
        if mask.shape != tokens.shape[:1]:
            raise ValueError(
                f"mask of video {index} must have shape (T,) = ({len(tokens)},), "
                f"got {tuple(mask.shape)}"
            )
    length = max(len(tokens) for tokens, _ in videos)
    batch = first.new_zeros(len(videos), length, *first.shape[1:])
    masks = videos[0][1].new_zeros(len(videos), length)
    for index, (tokens, mask) in enumerate(videos):
        batch[index, : len(tokens)] = tokens
        masks[index, : len(mask)] = mask
    return batch, masks
