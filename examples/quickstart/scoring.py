"""Scores of all texts and videos of a split, in one stage or in two."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.quickstart.model import QuickstartModel, Tokenizer
from examples.quickstart.splits import Split
from muse_adapter import EERCF, ExactRecall, MeanMaxSim, TwoStageRetriever
from muse_adapter.encoders import embed_texts, embed_videos
from muse_adapter.retrieval import FeatureRows

CANDIDATES = 50  # that the second stage orders
BATCH = 32


def score_all(model: QuickstartModel, tokenizer: Tokenizer, split: Split) -> Tensor:
    """Compare every text with every video, as the model's objective trains it.

    Returns:
        (texts, videos): cosines of embeddings, EERCF's score of the coarse stage, or MeanMaxSim.
    """
    ids = tokenizer(split.captions)
    if model.scorer is None:
        return embed_texts(model, ids) @ embed_videos(model, split.frames, split.mask).T
    levels = embed_levels(model, split)
    if isinstance(model.scorer, MeanMaxSim):
        words, word_mask = embed_words(model, ids)
        with torch.no_grad():
            return model.scorer(
                words, levels["frames"], levels["fused"], word_mask, levels["frame_mask"]
            )
    texts, videos = coarse_vectors(model, embed_texts(model, ids), levels)
    return texts @ videos.T


def score_in_two_stages(
    model: QuickstartModel, tokenizer: Tokenizer, split: Split, *, candidates: int = CANDIDATES
) -> tuple[Tensor, Tensor]:
    """Let EERCF's coarse stage choose candidates and its fine scores order these alone.

    Args:
        model: Trained with EERCF's objective.
        tokenizer: Its tokenizer.
        split: The clips.
        candidates: Videos that a text chooses, and texts that a video chooses.

    Returns:
        (texts, videos) twice: to rank videos for a text, and to rank texts for a video. What is no
        candidate keeps the order of the coarse stage, below all candidates.
    """
    scorer = model.scorer
    assert isinstance(scorer, EERCF)
    texts, levels = embed_texts(model, tokenizer(split.captions)), embed_levels(model, split)
    coarse_texts, coarse_videos = coarse_vectors(model, texts, levels)
    coarse = coarse_texts @ coarse_videos.T

    videos_of_text = TwoStageRetriever(
        ExactRecall(coarse_videos),
        FeatureRows(levels),
        lambda text, found: scorer.rerank_candidates(text, **found),
        candidates=candidates,
    ).search(texts, candidates, recall_queries=coarse_texts)
    texts_of_video = TwoStageRetriever(
        ExactRecall(coarse_texts),
        FeatureRows(texts),
        lambda video, found: scorer.rerank(
            torch.stack(found), **{name: row[None] for name, row in video.items()}
        )[:, 0],
        candidates=candidates,
    ).search(levels, candidates, recall_queries=coarse_videos)
    return _place(coarse, *videos_of_text), _place(coarse.T, *texts_of_video).T


def embed_levels(model: QuickstartModel, split: Split) -> dict[str, Tensor]:
    """Compute the features of all videos that scorers compare.

    Returns:
        By the names of `EERCF.scores`, on the CPU: frames and fused (n, T, D), patches
        (n, T, P, D), frame_mask (n, T).
    """
    device = model.logit_scale.device
    with _evaluation(model):
        parts = [
            [
                level.cpu()
                for level in model.encode_levels(
                    split.frames[batch].to(device), split.mask[batch].to(device)
                )
            ]
            for batch in _batches(len(split.frames))
        ]
    frames, fused, patches = (torch.cat(level) for level in zip(*parts, strict=True))
    return {"frames": frames, "fused": fused, "patches": patches, "frame_mask": split.mask}


def embed_words(model: QuickstartModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the words (n, W, D) of all texts and their mask (n, W), on the CPU."""
    device = model.logit_scale.device
    with _evaluation(model):
        parts = [model.encode_words(ids[batch].to(device)) for batch in _batches(len(ids))]
    length = max(mask.shape[1] for _, mask in parts)  # a tower may cut padding off
    return (
        torch.cat([F.pad(words, (0, 0, 0, length - words.shape[1])).cpu() for words, _ in parts]),
        torch.cat([F.pad(mask, (0, length - mask.shape[1])).cpu() for _, mask in parts]),
    )


def coarse_vectors(
    model: QuickstartModel, texts: Tensor, levels: dict[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the vectors of texts and of videos whose inner products are EERCF's coarse scores."""
    with torch.no_grad():
        return (
            model.scorer.recall_text(texts),
            model.scorer.recall_video(levels["fused"], levels["frame_mask"]),
        )


def _place(coarse: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Put the scores of candidates (A, K) above all others of the coarse ones (A, all)."""
    below = coarse - coarse.max() + scores.min() - 1
    return below.scatter(1, ids, scores)


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(training)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]
