"""EERCF's rerank score of one text and its candidates, whose features are read where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from muse_adapter.layers.candidates import (
    RowKind,
    Rows,
    can_read_in_place,
    candidate_scores,
    held,
    row_kind,
)
from muse_adapter.layers.feature_checks import check_features, check_mask
from muse_adapter.models.eercf_levels import check_sizes
from muse_adapter.models.eercf_objective import weighted_terms

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
    frames, fused = held("frames", frames), held("fused", fused)
    patches = None if patches is None else held("patches", patches)
    mask = _check(scorer, text, frames, fused, patches, frame_mask, recall_text)
    if not can_read_in_place(scorer.parameters(), text, frames, fused, patches, recall_text):
        frames, fused = torch.stack(list(frames)), torch.stack(list(fused))
        patches = None if patches is None else _floating(torch.stack(list(patches)), text)
        return scorer.rerank(text[None], frames, fused, patches, mask)[0]
    # Raises where nothing that is there has a weight; terms in the order of `EercfScores`.
    weighted_terms(scorer.rerank_weights, (fused, frames, patches, fused, patches))
    video, frame_weak, patch_weak, frame, patch = scorer.rerank_weights
    if patches is None:
        patch_weak = patch = 0.0
    if recall_text is None and video:
        (recall_text,) = scorer.recall_text(text[None])
    scores = candidate_scores(
        text,
        frames,
        fused,
        mask,
        weak_temperature=scorer.weak_temperature,
        gate_temperature=scorer.frame_temperature,
        weights=(frame_weak, frame, video),
        mix=scorer.frame_logit_weight,
        mean_query=recall_text,
    )
    if patches is not None and (patch_weak or patch):
        scores += candidate_scores(
            text,
            patches,
            patches if patch else None,
            None if mask is None else mask.repeat_interleave(row_kind(patches).shape[1], dim=1),
            weak_temperature=scorer.weak_temperature,
            gate_temperature=scorer.patch_temperature,
            weights=(patch_weak, patch, 0.0),
        )
    return scores


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
    patch = None if patches is None else row_kind(patches)
    if patch is not None and patch.dtype == torch.int8:
        patch = RowKind(patch.shape, text.dtype, patch.device)  # compared with any type
    sizes = check_features(
        text=(text, "D"),
        recall_text=(recall_text, "D"),
        frames=(row_kind(frames), "T D"),
        fused=(row_kind(fused), "T D"),
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
