"""Evaluation: every text and every video is encoded once, then compared as numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from examples.quickstart.data import Part
from examples.quickstart.model import DualEncoder, Tokenizer
from muse_adapter import retrieval_metrics

BATCH = 32


def captions_of(part: Part) -> list[str]:
    """The captions of a part, in its order."""
    return [clip.caption for clip in part.clips]


def videos_of(part: Part) -> tuple[Tensor, Tensor]:
    """The videos of a part, each once, though it may have several captions.

    Returns:
        int64 (videos,): a row of the part for each video. int64 (captions,): the video of each row.
    """
    number: dict[Path, int] = {}
    rows, targets = [], []
    for row, clip in enumerate(part.clips):
        if clip.path not in number:
            number[clip.path] = len(number)
            rows.append(row)
        targets.append(number[clip.path])
    return torch.tensor(rows), torch.tensor(targets)


@torch.inference_mode()
def embed_videos(model: DualEncoder, part: Part, rows: Tensor) -> Tensor:
    """Embeddings of the clips of some rows of a part, float32 (n, D), on the CPU."""
    model.eval()
    device = model.logit_scale.device
    batches = [
        model.encode_video(part.frames[batch].to(device), part.mask[batch].to(device))
        for batch in rows.split(BATCH)
    ]
    return torch.cat(batches).float().cpu()


@torch.inference_mode()
def embed_texts(model: DualEncoder, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    """Embeddings of texts, float32 (n, D), on the CPU."""
    model.eval()
    device = model.logit_scale.device
    batches = [model.encode_text(ids.to(device)) for ids in tokenizer(texts).split(BATCH)]
    return torch.cat(batches).float().cpu()


def pair_preference(similarity: Tensor, targets: Tensor, part: Part) -> float | None:
    """How often a caption prefers its clip over the time reversal of that clip.

    Args:
        similarity: (texts, videos) of the part.
        targets: (texts,), the video of each text.
        part: its clips name their reversals.

    Returns:
        Percent of the captions whose clip has its reversal in the part; a tie counts one half.
        None if there is no such pair.
    """
    row = {clip.id: i for i, clip in enumerate(part.clips)}
    pairs = [
        (i, row[clip.reversal])
        for i, clip in enumerate(part.clips)
        if clip.reversal is not None and clip.reversal in row
    ]
    if not pairs:
        return None
    own, reversal = torch.tensor(pairs).T
    gap = similarity[own, targets[own]] - similarity[own, targets[reversal]]
    return 100 * ((gap > 0).double() + 0.5 * (gap == 0).double()).mean().item()


def evaluate(model: DualEncoder, tokenizer: Tokenizer, part: Part) -> dict[str, Any]:
    """Retrieval on a part.

    Returns:
        {"t2v": {"R@1": percent, ...}, "v2t": {...}, "pair_preference": percent or None}.
    """
    rows, targets = videos_of(part)
    texts = embed_texts(model, tokenizer, captions_of(part))
    similarity = texts @ embed_videos(model, part, rows).T
    return {
        **retrieval_metrics(similarity, targets),
        "pair_preference": pair_preference(similarity, targets, part),
    }
