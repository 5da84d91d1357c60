"""Retrieval metrics of a similarity matrix, in both directions, exact under ties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from muse_adapter.retrieval import normalization
from muse_adapter.retrieval.checks import as_matrix, from_numpy

if TYPE_CHECKING:
    import numpy


def retrieval_metrics(
    similarity: Tensor | numpy.ndarray,
    targets: Tensor | numpy.ndarray | Sequence[int] | None = None,
    ks: Sequence[int] = (1, 5, 10),
    *,
    dual_softmax: bool = False,
    query_bank: Tensor | numpy.ndarray | None = None,
) -> dict[str, dict[str, float]]:
    """Compute text-to-video and video-to-text retrieval metrics.

    Text to video: every text is a query, the gallery is all videos. Video to text: every video that
    has a text is a query, the gallery is all texts, and the best of its own texts counts; videos
    without a text are in the gallery only. With several texts per video, CLIP4Clip's evaluation
    instead ranks the videos by their best text. Where each of the V videos has a text, that is:

    >>> similarity = torch.tensor([[0.9, 0.1], [0.2, 0.3], [0.4, 0.8]])
    >>> targets = torch.tensor([0, 0, 1])
    >>> lowest = similarity.new_full((2, 2), -torch.inf)  # (V, V)
    >>> index = targets[:, None].expand(-1, 2)
    >>> best = lowest.scatter_reduce(0, index, similarity, "amax")
    >>> retrieval_metrics(best)["v2t"]["R@1"]
    100.0

    The order of items with equal similarity is random; each metric is the exact expectation over
    that order, so constant similarities give chance level and not 100 percent.

    Args:
        similarity: (texts, videos), a tensor or a numpy array, floating point, finite; higher is
            more similar.
        targets: (texts,) integers, the index of each text's video. None: text i belongs to video i,
            and the matrix is square.
        ks: The values of K in R@K.
        dual_softmax: Whether to add the metrics after `dual_softmax`, in both directions;
            `similarity` must be cosines.
        query_bank: (bank texts, videos), cosines of other texts with these videos. Given: the
            metrics after `query_bank_normalization` are added; `similarity` must be cosines.

    Returns:
        One mapping for each direction, `"t2v"` and `"v2t"`; if asked for, also `"t2v+DSL"`,
        `"v2t+DSL"` and `"t2v+QB-Norm"`. It contains, as floats, `"R@K"` for every K, the percentage
        of queries whose rank is at most K; `"MdR"`, the median over the queries of the expected
        rank; `"MnR"`, its mean. Ranks start at 1.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape or range, or is not finite.
    """
    matrix = as_matrix("similarity", "texts", similarity)
    _check_ks(ks)
    target = _as_targets(targets, matrix)  # (texts,)
    metrics = {"t2v": _text_to_video(matrix, target, ks), "v2t": _video_to_text(matrix, target, ks)}
    if dual_softmax:
        target = target.cpu()
        by_text = normalization.dual_softmax(matrix)
        metrics["t2v+DSL"] = _text_to_video(by_text, target, ks)
        queries, own = target.unique(return_inverse=True)  # a video without a text is no query
        by_video = normalization.dual_softmax(matrix[:, queries.to(matrix.device)].T).T
        metrics["v2t+DSL"] = _video_to_text(by_video, own, ks)
    if query_bank is not None:
        bank = as_matrix("query_bank", "bank texts", query_bank)
        lowered = normalization.query_bank_normalization(matrix, bank)
        metrics["t2v+QB-Norm"] = _text_to_video(lowered, target.cpu(), ks)
    return metrics


def _text_to_video(similarity: Tensor, target: Tensor, ks: Sequence[int]) -> dict[str, float]:
    own = similarity.gather(1, target[:, None])  # (texts, 1)
    higher = (similarity > own).sum(1)
    tied = (similarity == own).sum(1) - 1
    return _summary(higher, tied, torch.ones_like(tied), ks)


def _video_to_text(similarity: Tensor, target: Tensor, ks: Sequence[int]) -> dict[str, float]:
    own = similarity.gather(1, target[:, None])[:, 0]  # (texts,)
    lowest = similarity.new_full((similarity.shape[1],), -torch.inf)
    best = lowest.scatter_reduce(0, target, own, "amax")  # (videos,)
    is_best = (own == best[target]).long()
    own_best = torch.zeros_like(best, dtype=torch.long).scatter_add(0, target, is_best)
    higher = (similarity > best).sum(0)
    tied = (similarity == best).sum(0) - own_best
    queries = own_best > 0
    return _summary(higher[queries], tied[queries], own_best[queries], ks)


def _summary(higher: Tensor, tied: Tensor, correct: Tensor, ks: Sequence[int]) -> dict[str, float]:
    """Compute the metrics of one direction from counts of gallery items, each (queries,).

    Args:
        higher: Items above the best correct one.
        tied: Incorrect items tied with it.
        correct: Correct items tied with it, including itself.
        ks: The values of K.

    Returns:
        The metrics of one direction.
    """
    # In float64, and so on the CPU: not every device has it.
    higher, tied, correct = (count.cpu().double() for count in (higher, tied, correct))
    # A tied incorrect item comes before all correct ones with probability 1 / (correct + 1).
    ranks = higher + 1 + tied / (correct + 1)
    metrics = {
        f"R@{k}": 100 * _hit_probability(k - higher, tied, correct).mean().item() for k in ks
    }
    ordered = ranks.sort().values
    middle = ordered[[(len(ordered) - 1) // 2, len(ordered) // 2]].mean()
    return {**metrics, "MdR": middle.item(), "MnR": ranks.mean().item()}


def _hit_probability(places: Tensor, tied: Tensor, correct: Tensor) -> Tensor:
    """Compute the probability that a correct item is among the first `places` of a random order.

    The order is that of `tied` incorrect and `correct` correct items. The probability is
    1 - C(tied, places) / C(tied + correct, places); the quotient is the product over
    i = 1..correct of (tied - places + i) / (tied + i), which needs no factorials.
    """
    places = places.clamp(min=0)
    missed = torch.ones_like(tied)
    for i in range(1, int(correct.max()) + 1):
        factor = (tied - places + i).clamp(min=0) / (tied + i)
        missed = torch.where(i <= correct, missed * factor, missed)
    return 1 - missed


def _check_ks(ks: Sequence[int]) -> None:
    integers = isinstance(ks, (tuple, list, range)) and all(
        isinstance(k, int) and not isinstance(k, bool) for k in ks
    )
    if not integers:
        raise TypeError(f"ks must be a tuple or list of ints, got {ks!r}")
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"ks must be positive, without repeats and not empty, got {ks!r}")


def _as_targets(targets: Any, similarity: Tensor) -> Tensor:
    texts, videos = similarity.shape
    if targets is None:
        if texts != videos:
            raise ValueError(
                "similarity must be square if no targets are given, "
                f"got (texts, videos) = {(texts, videos)}"
            )
        return torch.arange(texts, device=similarity.device)
    indices = torch.as_tensor(from_numpy(targets), device=similarity.device)
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"targets must be integers, got {indices.dtype}")
    if indices.shape != (texts,):
        raise ValueError(
            f"targets must have shape (texts,) = ({texts},), got {tuple(indices.shape)}"
        )
    indices = indices.long()
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= videos:
        raise ValueError(
            f"targets must be video indices from 0 to {videos - 1}, got {low if low < 0 else high}"
        )
    return indices
