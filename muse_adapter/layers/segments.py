"""Segments of a video: its frames cut at equal distances, each segment averaged."""

from __future__ import annotations

import torch
from torch import Tensor


def segment_edges(lengths: Tensor, count: int) -> Tensor:
    """Compute where segments begin, e_i = min(round(i * T / count), T - 1), halves to even.

    As published: with more than `count` frames, the last frame is in no segment.

    Args:
        lengths: (B,) frames T of each video, at least 1.
        count: Number of segments.

    Returns:
        (B, count + 1) integers, ascending. Segment i has the frames from e_i to before e_(i+1), or
        e_i alone if there are none.
    """
    steps = torch.arange(count + 1, device=lengths.device)
    # In float64 the quotient of two integers is a half exactly where it is one.
    edges = (steps * lengths[:, None]).double().div(count).round().long()
    return torch.minimum(edges, lengths[:, None] - 1)


def segment_means(frames: Tensor, lengths: Tensor, count: int) -> Tensor:
    """Average the frames of each segment.

    Args:
        frames: (B, T, C), the real frames of each video first.
        lengths: (B,) real frames, at least 1.
        count: Number of segments.

    Returns:
        (B, count, C).
    """
    edges = segment_edges(lengths, count)
    first, sizes = edges[:, :-1], edges.diff(dim=1)
    positions = torch.arange(frames.shape[1], device=frames.device)
    # Of equal edges the last begins the segment that has the frame; the last edge begins the rest.
    segment = torch.searchsorted(edges, positions.repeat(len(edges), 1), right=True) - 1
    sums = frames.new_zeros(len(frames), count + 1, frames.shape[2])
    sums = sums.scatter_add(1, _wide(segment, frames), frames)[:, :count]
    single = frames.gather(1, _wide(first, frames))
    sizes = sizes[..., None]
    return torch.where(sizes > 0, sums / sizes.clamp(min=1), single)


def segment_spans(length: int, count: int) -> Tensor:
    """Return the first and the last frame of each segment, (count, 2), both inclusive."""
    edges = segment_edges(torch.tensor([length]), count)[0]
    return torch.stack([edges[:-1], torch.maximum(edges[1:] - 1, edges[:-1])], dim=1)


def _wide(index: Tensor, frames: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, frames.shape[2])
