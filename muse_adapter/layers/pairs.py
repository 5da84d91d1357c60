"""Scores of all pairs of texts and videos, and vectors of videos, in blocks that fit a cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.torch_private import saved_tensor_hooks_are_off
from muse_adapter.ops.unit import unit

T = TypeVar("T")

# Numbers of one block, of which a score holds several at once. On a CPU they stay in the cache; a
# GPU needs larger ones to be busy.
_CPU_BLOCK = 2**20
_BLOCK = 2**25


def unit_tokens(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """Normalise tokens and zero the masked ones.

    Args:
        tokens: (B, N, D), any values where masked, NaN included.
        mask: (B, N) bool, or None.

    Returns:
        (B, N, D), as from `unit`.
    """
    # `where`, never a product: 0 * NaN is NaN.
    return unit(tokens if mask is None else torch.where(mask[..., None], tokens, 0))


def inner_products(x: Tensor, y: Tensor) -> Tensor:
    """Compute inner products (A, B) of vectors (A, D) and (B, D), without autocast."""
    with without_autocast(x.device.type):
        return x @ y.to(x.dtype).T


def cosines(text: Tensor, tokens: Tensor) -> Tensor:
    """Compute inner products of texts and tokens.

    Args:
        text: (A, D), of unit norm.
        tokens: (B, N, D), of unit norm.

    Returns:
        (B, N, A). Texts come last, so that sums over tokens add whole rows.
    """
    return (tokens.flatten(0, 1) @ text.T).unflatten(0, tokens.shape[:2])


def score_pairs(
    score: Callable[..., tuple[Tensor, ...]],
    texts: Sequence[Tensor | None],
    videos: Sequence[Tensor | None],
    pair_size: int,
) -> tuple[Tensor, ...]:
    """Compute scores of all pairs, in blocks of texts and videos.

    Between the inputs and the scores of a block nothing is kept for the backward pass, which
    recomputes it: the memory is that of one block. Autocast is off inside.

    Args:
        score: From a block of each of `texts` and of `videos`, in this order, to scores (b, a).
        texts: Tensors (A, ...), one row for each text, or None, which stays None.
        videos: Tensors (B, ...), one row for each video, or None.
        pair_size: Numbers that the scores of one pair are computed from.

    Returns:
        (A, B) for each score.
    """
    text, video = (
        next(tensor for tensor in tensors if tensor is not None) for tensors in (texts, videos)
    )
    budget = _budget(text)
    text_block = max(1, min(len(text), budget // pair_size))
    video_block = max(1, budget // (pair_size * text_block))
    with without_autocast(text.device.type):
        if text_block >= len(text) and video_block >= len(video):
            return tuple(block.T for block in score(*texts, *videos))
        rows = []
        run = _recomputed(score)
        columns = _blocks(videos, video_block)
        for text_part in _blocks(texts, text_block):
            blocks = [run(*text_part, *part) for part in columns]
            rows.append([torch.cat(scores).T for scores in zip(*blocks, strict=True)])
        return tuple(torch.cat(scores) for scores in zip(*rows, strict=True))


def pool_videos(
    pool: Callable[..., Tensor], videos: Sequence[Tensor | None], video_size: int
) -> Tensor:
    """Compute a vector of each video, in blocks of videos.

    As in `score_pairs`, the backward pass recomputes a block, so that copies of one block at most
    are kept for it.

    Args:
        pool: From a block of each of `videos` to vectors (b, D).
        videos: Tensors (B, ...), one row for each video, or None, which stays None.
        video_size: Numbers that the vector of one video is computed from.

    Returns:
        (B, D).
    """
    video = next(tensor for tensor in videos if tensor is not None)
    block = max(1, _budget(video) // max(1, video_size))
    if block >= len(video):
        return pool(*videos)
    run = _recomputed(pool)
    return torch.cat([run(*part) for part in _blocks(videos, block)])


def _budget(tensor: Tensor) -> int:
    return _CPU_BLOCK if tensor.device.type == "cpu" else _BLOCK


def _recomputed(function: Callable[..., T]) -> Callable[..., T]:
    """Let the backward pass recompute a function, where there will be one that can."""
    # Under `torch.func`'s gradients nothing can be recomputed.
    # Where a graph is traced, the question would break it.
    traced = torch.compiler.is_compiling()
    if not torch.is_grad_enabled() or (not traced and saved_tensor_hooks_are_off()):
        return function
    return functools.partial(checkpoint, function, use_reentrant=False, preserve_rng_state=False)


def _blocks(tensors: Sequence[Tensor | None], size: int) -> list[tuple[Tensor | None, ...]]:
    """Cut all tensors into blocks of `size` rows."""
    count = next(len(tensor) for tensor in tensors if tensor is not None)
    blocks = -(-count // size)
    # `split`, whose backward pass joins all blocks once; that of a slice is a tensor of full size.
    cut = [[None] * blocks if tensor is None else tensor.split(size) for tensor in tensors]
    return list(zip(*cut, strict=True))
