"""Evaluation of partially relevant retrieval: every caption ranks all videos of its split."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from muse_adapter.data.prvr.dataset import PrvrBatch
from muse_adapter.models import MamFusion, VideoCode
from muse_adapter.retrieval import retrieval_metrics

RECALLS = (1, 5, 10, 100)


@torch.no_grad()
def evaluate_prvr(
    model: MamFusion,
    batches: Iterable[PrvrBatch],
    *,
    similarity: Callable[[Tensor, VideoCode], Tensor] | None = None,
) -> dict[str, float]:
    """Rank all videos for each caption, from text to video as the papers do.

    Args:
        model: Evaluated in evaluation mode; its mode is restored.
        batches: All of a split, such as a `DataLoader` of a `PrvrDataset` with `collate_prvr`.
        similarity: Scores (Q, V) of encoded captions and videos; None: `model.similarity`, which
            goes through the pairs in blocks.

    Returns:
        "R@1", "R@5", "R@10" and "R@100" in percent, and "SumR", their sum. Ties count as their
        expectation over a random order, see `retrieval_metrics`.

    Raises:
        ValueError: There is no batch.
    """
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    queries, clips, videos, labels = [], [], [], []
    count = 0
    try:
        for batch in batches:
            batch = batch.to(device)
            queries.append(model.encode_text(batch.words, batch.word_mask, sentence=batch.sentence))
            code = model.encode_video(batch.frames, batch.frame_mask)
            clips.append(code.clips)
            videos.append(code.video)
            labels.append(batch.labels + count)
            count += len(batch.frames)
        if not queries:
            raise ValueError("expected at least one batch, got none")
        code = VideoCode(torch.cat(clips), torch.cat(videos))
        scores = (similarity or model.similarity)(torch.cat(queries), code)
    finally:
        model.train(training)
    metrics = retrieval_metrics(scores, torch.cat(labels), RECALLS)["t2v"]
    recalls = {f"R@{k}": metrics[f"R@{k}"] for k in RECALLS}
    return {**recalls, "SumR": sum(recalls.values())}
