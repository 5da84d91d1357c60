"""Evaluation: every text and every video is encoded once, then compared as numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from examples.quickstart.model import QuickstartModel, Tokenizer
from examples.quickstart.scoring import score_all, score_in_two_stages
from examples.quickstart.splits import Split
from muse_adapter import retrieval_metrics


def evaluate(model: QuickstartModel, tokenizer: Tokenizer, split: Split) -> dict[str, Any]:
    """Measure retrieval on a split, without reranking.

    Returns:
        {"t2v": {"R@1": percent, ...}, "v2t": {...}, "pair_preference": percent or None}.
    """
    similarity = score_all(model, tokenizer, split)
    return {
        **retrieval_metrics(similarity, split.video),
        "pair_preference": pair_preference(similarity, split),
    }


def evaluate_reranked(model: QuickstartModel, tokenizer: Tokenizer, split: Split) -> dict[str, Any]:
    """Measure retrieval in two stages on a split, with a model of EERCF's objective.

    Returns:
        As from `evaluate`.
    """
    videos_of_text, texts_of_video = score_in_two_stages(model, tokenizer, split)
    return {
        "t2v": retrieval_metrics(videos_of_text, split.video)["t2v"],
        "v2t": retrieval_metrics(texts_of_video, split.video)["v2t"],
        "pair_preference": pair_preference(videos_of_text, split),
    }


def pair_preference(similarity: Tensor, split: Split) -> float | None:
    """Measure how often a caption prefers its clip over the time reversal of that clip.

    Args:
        similarity: (texts, videos) of the split.
        split: Its clips name their reversals.

    Returns:
        Percent of the captions whose clip has its reversal in the split; a tie counts one half.
        None if there is no such pair.
    """
    row = {clip.id: i for i, clip in enumerate(split.clips)}
    pairs = [
        (i, row[clip.reversal])
        for i, clip in enumerate(split.clips)
        if clip.reversal is not None and clip.reversal in row
    ]
    if not pairs:
        return None
    own, reversal = torch.tensor(pairs).T
    gap = similarity[own, split.video[own]] - similarity[own, split.video[reversal]]
    return 100 * ((gap > 0).double() + 0.5 * (gap == 0).double()).mean().item()
