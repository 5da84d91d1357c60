"""EERCF's rerank score of one text and its candidates, whose features are read where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muse_adapter.layers.candidates import Rows, can_read_in_place, candidate_scores
from muse_adapter.layers.feature_checks import check_features, check_mask
from muse_adapter.layers.pairs import inner_products, unit
from muse_adapter.models.eercf_levels import check_sizes
from muse_adapter.models.eercf_objective import EercfScores

if TYPE_CHECKING:
    from muse_adapter.models.eercf import EERCF


def rerank_candidates(
    scorer: EERCF,
    text: Tensor,
    frames: Rows,
    fused: Rows,
    patches: Rows | None,
    frame_mask: Rows | None,
    recall_text: Tensor | None,
) -> Tensor:
    """Compute the scores (K,) of `EERCF.rerank_candidates`, whose arguments these are."""
    mask = _check(scorer, text, frames, fused, patches, frame_mask, recall_text)
    text = text[None]
    folded = None if recall_text is None else recall_text[None]
    if not can_read_in_place(scorer.parameters(), text, frames, fused, patches, folded):
        frames, fused = torch.stack(list(frames)), torch.stack(list(fused))
        patches = None if patches is None else _floating(torch.stack(list(patches)), text)
        return scorer.rerank(text, frames, fused, patches, mask)[0]
    text = unit(text)
    if folded is None:
        folded = inner_products(text, scorer.global_mat_weight.T)  # as `EERCF.recall_text` does
    text = text[0]
    weight = dict(zip(EercfScores._fields, scorer.rerank_weights, strict=True))
    frame_weak, frame, video = candidate_scores(
        text,
        frames,
        fused,
        mask,
        weak_temperature=scorer.weak_temperature,
        gate_temperature=scorer.frame_temperature,
        mix=scorer.frame_logit_weight,
        mean_query=folded[0].to(text.dtype),
    ).unbind(1)
    patch_weak = patch = None
    if patches is not None and (weight["patch_weak"] or weight["patch"]):
        patch_weak, *gated = candidate_scores(
            text,
            patches,
            patches if weight["patch"] else None,
            None if mask is None else mask.repeat_interleave(patches[0].shape[1], dim=1),
            weak_temperature=scorer.weak_temperature,
            gate_temperature=scorer.patch_temperature,
        ).unbind(1)
        patch = gated[0] if gated else None
    return scorer.rerank_score(EercfScores(video, frame_weak, patch_weak, frame, patch))


def _check(
    scorer: EERCF,
    text: Tensor,
    frames: Rows,
    fused: Rows,
    patches: Rows | None,
    frame_mask: Rows | None,
    recall_text: Tensor | None,
) -> Tensor | None:
    """Check all arguments, and return the mask (K, T) as bool."""
    named = {"frames": frames, "fused": fused, "patches": patches, "frame_mask": frame_mask}
    counts = {name: len(rows) for name, rows in named.items() if rows is not None}
    if len(set(counts.values())) > 1 or not len(frames):
        raise ValueError(f"there must be features of all candidates, at least one, got {counts}")
    patch = None if patches is None else patches[0]
    if patch is not None and patch.dtype == torch.int8:
        patch = text.new_empty(()).expand(patch.shape)  # in the type of the text, without memory
    sizes = check_features(
        text=(text, "D"),
        recall_text=(recall_text, "D"),
        frames=(frames[0], "T D"),
        fused=(fused[0], "T D"),
        patches=(patch, "T P D"),
    )
    matrix = scorer.frame_logit_weight
    dim = len(scorer.global_mat_weight)
    check_sizes(sizes, dim=dim, num_frames=None if matrix is None else len(matrix))
    mask = None if frame_mask is None else torch.stack(list(frame_mask))
    return check_mask("frame_mask", mask, (len(frames), sizes["T"]))


def _floating(patches: Tensor, text: Tensor) -> Tensor:
    """Return int8 patches in the type of the text, others as they are."""
    return patches.to(text.dtype) if patches.dtype == torch.int8 else patches
