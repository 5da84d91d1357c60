"""Retrieval metrics of a similarity matrix, in both directions, exact under ties."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def retrieval_metrics(
    similarity: Tensor,
    targets: Tensor | Sequence[int] | None = None,
    ks: Sequence[int] = (1, 5, 10),
) -> dict[str, dict[str, float]]:
    """Compute text-to-video and video-to-text retrieval metrics.

    Text to video: every text is a query, the gallery is all videos. Video to text: every video that
    has a text is a query, the gallery is all texts, and the best of its own texts counts; videos
    without a text are in the gallery only. With several texts per video, CLIP4Clip's evaluation
    instead ranks the videos by their best text. Where each of the V videos has a text, that is
    `retrieval_metrics(best)["v2t"]` of the square matrix `best = torch.full((V, V), -torch.inf)
    .scatter_reduce(0, targets[:, None].expand(-1, V), similarity, "amax")`.

    The order of items with equal similarity is random; each metric is the exact expectation over
    that order, so constant similarities give chance level and not 100 percent.

    Args:
        similarity: (texts, videos), floating point, finite; higher is more similar.
        targets: (texts,) integers, the index of each text's video. None: text i belongs to video i,
            and the matrix is square.
        ks: The values of K in R@K.

    Returns:
        One mapping for each direction, `"t2v"` and `"v2t"`. It contains, as floats, `"R@K"` for
        every K, the percentage of queries whose rank is at most K; `"MdR"`, the median over the
        queries of the expected rank; `"MnR"`, its mean. Ranks start at 1.

    Raises:
        TypeError: An argument has the wrong type or dtype.
        ValueError: An argument has the wrong shape or range, or `similarity` is not finite.
    """
    _check_similarity(similarity)
    _check_ks(ks)
    similarity = similarity.detach()
    target = _as_targets(targets, similarity)  # (texts,)
    videos = similarity.shape[1]

    own = similarity.gather(1, target[:, None])  # (texts, 1)
    higher = (similarity > own).sum(1)
    tied = (similarity == own).sum(1) - 1
    t2v = _summary(higher, tied, torch.ones_like(tied), ks)

    lowest = similarity.new_full((videos,), -torch.inf)
    best = lowest.scatter_reduce(0, target, own[:, 0], "amax")  # (videos,)
    is_best = (own[:, 0] == best[target]).long()
    own_best = torch.zeros_like(best, dtype=torch.long).scatter_add(0, target, is_best)
    higher = (similarity > best).sum(0)
    tied = (similarity == best).sum(0) - own_best
    queries = own_best > 0
    v2t = _summary(higher[queries], tied[queries], own_best[queries], ks)
    return {"t2v": t2v, "v2t": v2t}


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


def _check_similarity(similarity: Tensor) -> None:
    if not isinstance(similarity, Tensor):
        raise TypeError(f"similarity must be a torch tensor, got {type(similarity).__name__}")
    if not similarity.is_floating_point():
        raise TypeError(f"similarity must be floating point, got {similarity.dtype}")
    if similarity.dim() != 2 or similarity.numel() == 0:
        raise ValueError(
            "similarity must have shape (texts, videos), neither of them 0, "
            f"got {tuple(similarity.shape)}"
        )
    not_finite = int((~torch.isfinite(similarity)).sum())
    if not_finite:
        raise ValueError(
            f"similarity must be finite, got {not_finite} NaN or infinite values out of "
            f"{similarity.numel()}"
        )


def _check_ks(ks: Sequence[int]) -> None:
    integers = isinstance(ks, (tuple, list, range)) and all(
        isinstance(k, int) and not isinstance(k, bool) for k in ks
    )
    if not integers:
        raise TypeError(f"ks must be a tuple or list of ints, got {ks!r}")
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise ValueError(f"ks must be positive, without repeats and not empty, got {ks!r}")


def _as_targets(targets: Tensor | Sequence[int] | None, similarity: Tensor) -> Tensor:
    texts, videos = similarity.shape
    if targets is None:
        if texts != videos:
            raise ValueError(
                "similarity must be square if no targets are given, "
                f"got (texts, videos) = {(texts, videos)}"
            )
        return torch.arange(texts, device=similarity.device)
    indices = torch.as_tensor(targets, device=similarity.device)
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
