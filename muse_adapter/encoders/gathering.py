"""Features of the texts and videos of all processes, each kind joined in one collective."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.training.distributed import gather_rows, rank
from muse_adapter.training.losses.checks import as_indices


def gather_features(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Join the rows of several tensors over all ranks.

    Args:
        tensors: With B rows each; the other sizes are the same on all ranks.
        dtype: Of the results.

    Returns:
        The tensors with the rows of all ranks, in the order of the ranks.
    """
    joined = gather_rows(torch.cat([tensor.flatten(1).to(dtype) for tensor in tensors], 1))
    parts = joined.split([tensor.shape[1:].numel() for tensor in tensors], dim=1)
    return [
        part.unflatten(1, tensor.shape[1:]) for part, tensor in zip(parts, tensors, strict=True)
    ]


def gather_words(words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Join words (A, W, D) and their mask (A, W) over all ranks, whose W may differ."""
    lengths = gather_rows(torch.tensor([[words.shape[1]]], device=words.device))
    missing = int(lengths.max()) - words.shape[1]
    words, mask = F.pad(words, (0, 0, 0, missing)), F.pad(mask, (0, missing))
    words, mask = gather_features([words, mask], words.dtype)
    return words, mask


def gather_targets(targets: Tensor, texts: int, videos: int) -> Tensor:
    """Join targets (A,) over all ranks; they then count the videos of all ranks.

    Args:
        targets: The index of each text's video among those of this rank.
        texts: The number of texts of this rank.
        videos: The number of videos of this rank.

    Raises:
        TypeError: They are not an integer tensor.
        ValueError: They have another shape, or are out of range: joined, they would be in the range
            of another rank.
    """
    targets = as_indices("targets", targets, texts, videos)
    counts = gather_rows(torch.tensor([[videos]], device=targets.device))
    return gather_rows(targets[:, None] + counts[: rank()].sum())[:, 0]
