"""Scores of all texts and videos of a split, in one stage or in two."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from examples.quickstart.model import QuickstartModel, Tokenizer
from examples.quickstart.splits import Split
from muse_adapter import EERCF, ExactRecall, MeanMaxSim, TwoStageRetriever
from muse_adapter.encoders import embed_texts, embed_videos
from muse_adapter.retrieval import FeatureRows

CANDIDATES = 50  # that the second stage orders
BATCH = 32


@torch.no_grad()
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
        return model.scorer(
            words, levels["frames"], levels["fused"], word_mask, levels["frame_mask"]
        ).cpu()
    texts = model.scorer.recall_text(embed_texts(model, ids).to(levels["fused"].device))
    return (texts @ model.scorer.recall_video(levels["fused"], levels["frame_mask"]).T).cpu()


@torch.no_grad()
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
    levels = embed_levels(model, split)
    texts = embed_texts(model, tokenizer(split.captions)).to(levels["fused"].device)
    coarse_texts = scorer.recall_text(texts)
    coarse_videos = scorer.recall_video(levels["fused"], levels["frame_mask"])
    coarse = (coarse_texts @ coarse_videos.T).cpu()

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


@torch.no_grad()
def embed_levels(model: QuickstartModel, split: Split) -> dict[str, Tensor]:
    """Compute the features of all videos that scorers compare, in evaluation mode.

    Returns:
        By the names of `EERCF.scores`, on the model's device: frames and fused (n, T, D), patches
        (n, T, P, D), frame_mask (n, T).
    """
    device = model.logit_scale.device
    model.eval()
    mask = split.mask.to(device)
    parts = [
        model.encode_levels(split.frames[batch].to(device), mask[batch])
        for batch in _batches(len(split.frames))
    ]
    frames, fused, patches = (torch.cat(level) for level in zip(*parts, strict=True))
    return {"frames": frames, "fused": fused, "patches": patches, "frame_mask": mask}


@torch.no_grad()
def embed_words(model: QuickstartModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the words (n, W, D) of all texts and their mask (n, W), likewise."""
    device = model.logit_scale.device
    model.eval()
    parts = [model.encode_words(ids[batch].to(device)) for batch in _batches(len(ids))]
    length = max(mask.shape[1] for _, mask in parts)  # a tower may cut padding off
    words = [F.pad(words, (0, 0, 0, length - words.shape[1])) for words, _ in parts]
    masks = [F.pad(mask, (0, length - mask.shape[1])) for _, mask in parts]
    return torch.cat(words), torch.cat(masks)


def _place(coarse: Tensor, ids: Tensor, scores: Tensor) -> Tensor:
    """Put the scores of candidates (A, K) above all others of the coarse ones (A, all)."""
    below = coarse - coarse.max() + scores.min() - 1
    return below.scatter(1, ids, scores)


def _batches(count: int) -> list[slice]:
    return [slice(start, start + BATCH) for start in range(0, count, BATCH)]
