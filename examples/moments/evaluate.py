"""Evaluation as in PRVR: all videos are ranked for each sentence, and by order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from examples.moments.moments import LongVideo
from muse_adapter import retrieval_metrics

KS = (1, 5, 10, 100)


def evaluate(scores: Tensor, others: Tensor, videos: Sequence[LongVideo]) -> dict[str, Any]:
    """Measure retrieval of the videos of a split by their sentences.

    A sentence may be true of further videos: these are no wrong answers, and left out of its
    ranking.

    Args:
        scores: (Q, V), the sentences in the order of the videos and their moments.
        others: Bool (Q, V), the further videos.
        videos: The videos.

    Returns:
        For all sentences and for the static and the ordered ones R@1, R@5, R@10, R@100 and SumR,
        their sum; and `order_right`, the percentage of the ordered ones for which the own video
        scores above its twin, which has the two contents in the other order; a tie counts one half.
    """
    moments = [moment for video in videos for moment in video.moments]
    own = torch.tensor([n for n, video in enumerate(videos) for _ in video.moments])
    ranked = scores.masked_fill(others, scores.min().item() - 1)
    ordered = torch.tensor([moment.ordered for moment in moments])
    result: dict[str, Any] = {
        name: _recalls(ranked[rows], own[rows])
        for name, rows in (
            ("all", torch.ones_like(ordered)),
            ("static", ~ordered),
            ("ordered", ordered),
        )
    }
    number = {video.id: n for n, video in enumerate(videos)}
    twin = torch.tensor([number[video.twin] for video in videos])[own]
    gap = scores.gather(1, own[:, None]) - scores.gather(1, twin[:, None])
    # By chance neighbouring moments of the twin may show the contents in this order too.
    gap = gap[ordered & ~others.gather(1, twin[:, None])[:, 0]]
    result["order_right"] = 100 * ((gap > 0).double() + 0.5 * (gap == 0).double()).mean().item()
    return result


def _recalls(scores: Tensor, own: Tensor) -> dict[str, float]:
    metrics = retrieval_metrics(scores, own, KS)["t2v"]
    recalls = {f"R@{k}": metrics[f"R@{k}"] for k in KS}
    return {**recalls, "SumR": sum(recalls.values())}
