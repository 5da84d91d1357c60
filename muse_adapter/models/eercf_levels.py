"""EERCF's scores of one level, frames or patches: what both forms share is computed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from muse_adapter.layers.feature_checks import check_features, check_mask
from muse_adapter.layers.pairs import cosines, score_pairs, unit_tokens
from muse_adapter.layers.token_weights import gated_cosines, gated_size, weighted_similarity


def level_scores(
    names: Sequence[str],
    text: Tensor,
    keys: Tensor,
    values: Tensor | None,
    mask: Tensor | None,
    *,
    weak_temperature: float,
    gate_temperature: float,
    mix: Tensor | None = None,
) -> dict[str, Tensor]:
    """Compute scores of texts and the tokens of videos.

    Args:
        names: Fields of `EercfScores`; those that end in "_weak" are token similarities, the others
            gated cosines.
        text: (A, D), of unit norm.
        keys: (B, N, D).
        values: (B, N, D) for gated cosines; None: the keys.
        mask: (B, N) bool, or None.
        weak_temperature: Of the token similarities.
        gate_temperature: Of the gate.
        mix: (N, N), for the token similarities, or None.

    Returns:
        (A, B) for each name.
    """

    def score(
        text: Tensor, keys: Tensor, values: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, ...]:
        keys = unit_tokens(keys, mask)
        values = None if values is None else unit_tokens(values, mask)
        sims = cosines(text, keys)
        return tuple(
            weighted_similarity(sims, mask, weak_temperature, mix)
            if name.endswith("_weak")
            else gated_cosines(text, sims, keys, values, mask, gate_temperature)
            for name in names
        )

    gated = any(not name.endswith("_weak") for name in names)
    size = gated_size(len(text), keys) if gated else keys.shape[1]
    scores = score_pairs(score, (text,), (keys, values, mask), size)
    return dict(zip(names, scores, strict=True))


def flat_patches(patches: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Bring patches (B, T, P, D) and the mask (B, T) of their frames to (B, T*P, ...)."""
    if mask is not None:
        mask = mask.repeat_interleave(patches.shape[2], dim=1)
    return patches.flatten(1, 2), mask


def check_levels(
    text: Tensor,
    frames: Tensor,
    fused: Tensor,
    patches: Tensor | None,
    frame_mask: Tensor | None,
    *,
    dim: int,
    num_frames: int | None,
) -> Tensor | None:
    """Check the inputs of a scorer; see `EERCF.scores`.

    Args:
        text: (A, D).
        frames: (B, T, D).
        fused: (B, T, D).
        patches: (B, T, P, D), or None.
        frame_mask: (B, T), or None.
        dim: D of the scorer.
        num_frames: T of the scorer; None: any.

    Returns:
        The mask as bool.

    Raises:
        TypeError: A tensor is of the wrong type.
        ValueError: The shapes do not fit, or the mask has values other than 0 and 1.
    """
    sizes = check_features(
        text=(text, "A D"),
        frames=(frames, "B T D"),
        fused=(fused, "B T D"),
        patches=(patches, "B T P D"),
    )
    check_sizes(sizes, dim=dim, num_frames=num_frames)
    return check_mask("frame_mask", frame_mask, (sizes["B"], sizes["T"]))


def check_sizes(sizes: Mapping[str, int], *, dim: int, num_frames: int | None) -> None:
    """Check that D and T are those of the scorer; see `check_levels`."""
    for letter, wanted in (("D", dim), ("T", num_frames)):
        if wanted is not None and sizes[letter] != wanted:
            raise ValueError(f"this scorer is for {letter} = {wanted}, got {sizes[letter]}")
