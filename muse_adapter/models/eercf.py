"""EERCF: the published scorer from coarse to fine (Tian et al., AAAI 2024)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.layers.feature_checks import check_mask
from muse_adapter.layers.pairs import inner_products, pool_videos, unit, unit_tokens
from muse_adapter.layers.pool import mean_pool
from muse_adapter.layers.token_weights import pool_by_own_text
from muse_adapter.models.eercf_candidates import Rows, rerank_candidates
from muse_adapter.models.eercf_levels import check_levels, flat_patches, level_scores
from muse_adapter.models.eercf_objective import (
    EercfLoss,
    EercfScores,
    ObjectiveWeights,
    PairedVectors,
    eercf_loss,
    weighted_sum,
)


class EERCF(nn.Module):
    """Score texts and videos from coarse to fine, and train that.

    Inputs need not be normalised. Scores are computed in float32 at least and do not contain the
    logit scale. Without patches their terms are left out everywhere. A masked frame and its patches
    take no part in any score. All defaults are the published values.

    Args:
        dim: Width D.
        num_frames: T, for the learned frame matrix; None: without it, and with any T.
        frame_temperature: Of the text's gate over frames.
        patch_temperature: Of the text's gate over patches.
        weak_temperature: Of the softmax in `frame_weak` and `patch_weak`.
        weak_weights: Of `video`, `frame_weak` and `patch_weak` in the weak loss.
        strong_weights: Of `frame` and `patch` in the strong loss.
        intra_weights: Of the Pearson constraints of the text with the video vector, the gated
            frames and the gated patches.
        pearson_weights: Of the diagonal and the rest of the correlation matrix.
        loss_weights: Of the weak, the strong and the intra part in the total.
        rerank_weights: Of the five scores in the order of `EercfScores`, for reranking.

    Attributes:
        global_mat_weight: (D, D), the learned matrix W of `video`; at first the identity.
        frame_logit_weight: (T, T), the learned matrix of `frame_weak`; at first the identity. Or
            None.

    Raises:
        ValueError: A gate's temperature is not positive, or the weak one is negative.
    """

    def __init__(
        self,
        dim: int,
        num_frames: int | None = None,
        *,
        frame_temperature: float = 0.1,
        patch_temperature: float = 0.01,
        weak_temperature: float = 0.01,
        weak_weights: tuple[float, float, float] = ObjectiveWeights().weak,
        strong_weights: tuple[float, float] = ObjectiveWeights().strong,
        intra_weights: tuple[float, float, float] = ObjectiveWeights().intra,
        pearson_weights: tuple[float, float] = ObjectiveWeights().pearson,
        loss_weights: tuple[float, float, float] = ObjectiveWeights().total,
        rerank_weights: tuple[float, float, float, float, float] = (0.5, 0.8, 0.2, 0.2, 0.0),
    ) -> None:
        super().__init__()
        if not (frame_temperature > 0 and patch_temperature > 0 and weak_temperature >= 0):
            raise ValueError(
                "frame_temperature and patch_temperature must be positive and weak_temperature not "
                f"negative, got {frame_temperature}, {patch_temperature} and {weak_temperature}"
            )
        self.frame_temperature = frame_temperature
        self.patch_temperature = patch_temperature
        self.weak_temperature = weak_temperature
        self.weights = ObjectiveWeights(
            weak_weights, strong_weights, intra_weights, pearson_weights, loss_weights
        )
        self.rerank_weights = rerank_weights
        self.global_mat_weight = nn.Parameter(torch.eye(dim))
        self.frame_logit_weight: nn.Parameter | None = None
        if num_frames is not None:
            self.frame_logit_weight = nn.Parameter(torch.eye(num_frames))

    @property
    def trains_patches(self) -> bool:
        """Whether patches have a weight in the loss."""
        return bool(self.weights.weak[2]) or self.weights.pools_patches

    def recall_text(self, text: Tensor) -> Tensor:
        """Fold W into texts, so that an index needs the video vectors alone.

        Args:
            text: (A, D).

        Returns:
            (A, D), not of unit norm; the inner products with `recall_video` are `video`.
        """
        return inner_products(unit(text), self.global_mat_weight.T)

    def recall_video(self, fused: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Pool frame features to the vectors that an index stores.

        Args:
            fused: (B, T, D), the head's frame features.
            frame_mask: (B, T), or None.

        Returns:
            (B, D) of unit norm; zero for a video without a real frame.
        """
        mask = check_mask("frame_mask", frame_mask, (len(fused), fused.shape[1]))

        def pool(fused: Tensor, mask: Tensor | None) -> Tensor:
            return mean_pool(unit_tokens(fused, mask), mask)

        return pool_videos(pool, (fused, mask), fused.shape[1:].numel())

    def scores(
        self,
        text: Tensor,
        frames: Tensor,
        fused: Tensor,
        patches: Tensor | None = None,
        frame_mask: Tensor | None = None,
        *,
        only: Collection[str] = EercfScores._fields,
    ) -> EercfScores:
        """Score all pairs, each video pooled anew for each text.

        Args:
            text: (A, D), floating point.
            frames: (B, T, D), the backbone's class tokens, which decide on the gate.
            fused: (B, T, D), the head's frame features, which are summed.
            patches: (B, T, P, D), the backbone's patch tokens, or None.
            frame_mask: (B, T), True or 1 for a real frame; None: all are real.
            only: The scores to compute. `patch` costs the most, and the published ranking does
                without it.

        Returns:
            (A, B) each; None for what is not in `only`, and for patches that are not given. A video
            without a real frame scores 0, with gradient 0.

        Raises:
            TypeError: A tensor is of the wrong type.
            ValueError: The shapes do not fit, T is not `num_frames`, the mask has values other than
                0 and 1, or a name in `only` is unknown.
        """
        mask = self._check(text, frames, fused, patches, frame_mask)
        if unknown := set(only) - set(EercfScores._fields):
            raise ValueError(f"only must have names of {EercfScores._fields}, got {unknown}")
        found: dict[str, Tensor | None] = dict.fromkeys(EercfScores._fields)
        if "video" in only:
            video = self.recall_video(fused, mask)
            found["video"] = inner_products(self.recall_text(text), video)
        text = unit(text)
        names = [name for name in ("frame_weak", "frame") if name in only]
        if names:
            found |= self._frame_scores(names, text, frames, fused, mask)
        names = [name for name in ("patch_weak", "patch") if name in only]
        if names and patches is not None:
            found |= self._patch_scores(names, text, patches, mask)
        return EercfScores(**found)

    def rerank_score(self, scores: EercfScores) -> Tensor:
        """Add up scores with the weights for reranking.

        Args:
            scores: From `scores`; what is None is left out.

        Returns:
            (A, B).
        """
        return weighted_sum(self.rerank_weights, scores)

    def rerank(
        self,
        text: Tensor,
        frames: Tensor,
        fused: Tensor,
        patches: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute `rerank_score`, and no score that it does not need; arguments as in `scores`.

        Returns:
            (A, B).
        """
        weights = zip(EercfScores._fields, self.rerank_weights, strict=True)
        only = [name for name, weight in weights if weight]
        return self.rerank_score(self.scores(text, frames, fused, patches, frame_mask, only=only))

    def rerank_candidates(
        self,
        text: Tensor,
        frames: Rows,
        fused: Rows,
        patches: Rows | None = None,
        frame_mask: Rows | None = None,
        *,
        recall_text: Tensor | None = None,
    ) -> Tensor:
        """Compute `rerank` for one text and K candidates, whose features may lie anywhere.

        On a CPU, without gradients, features are read in place and in their own type.

        Args:
            text: (D,).
            frames: (K, T, D), or K tensors (T, D).
            fused: (K, T, D), or K tensors (T, D).
            patches: (K, T, P, D), or K tensors (T, P, D), or None. They may be int8: a quarter of
                the memory of float32, each token scaled as one likes, since its norm cancels.
            frame_mask: (K, T), or K tensors (T,), or None.
            recall_text: (D,), what `recall_text` made of the text for the first stage; None: it is
                computed again, as it is where features are not read in place.

        Returns:
            (K,).

        Raises:
            TypeError: As for `scores`.
            ValueError: As for `scores`, or the numbers of candidates differ.
        """
        return rerank_candidates(self, text, frames, fused, patches, frame_mask, recall_text)

    def loss(
        self,
        text: Tensor,
        frames: Tensor,
        fused: Tensor,
        patches: Tensor | None = None,
        frame_mask: Tensor | None = None,
        *,
        logit_scale: Tensor,
    ) -> EercfLoss:
        """Compute EERCF's objective.

        As published, training pools each video once, with the gate of its own text, through which
        no gradient flows; the other texts are compared with that vector.

        Args:
            text: (B, D); text i belongs to video i.
            frames: (B, T, D), as in `scores`.
            fused: (B, T, D).
            patches: (B, T, P, D), or None.
            frame_mask: (B, T), or None.
            logit_scale: Scalar, the logarithm of the factor on the scores.

        Returns:
            The total and its parts.

        Raises:
            TypeError: As for `scores`.
            ValueError: As for `scores`, or there is not one text for each video.
        """
        mask = self._check(text, frames, fused, patches, frame_mask)
        if len(text) != len(frames):
            raise ValueError(
                f"the loss needs one text for each video, got {len(text)} and {len(frames)}"
            )
        scores, vectors = self.paired(text, frames, fused, patches, mask)
        return eercf_loss(scores, vectors, logit_scale, self.weights)

    def paired(
        self,
        text: Tensor,
        frames: Tensor,
        fused: Tensor,
        patches: Tensor | None,
        mask: Tensor | None,
    ) -> tuple[EercfScores, PairedVectors]:
        """Compute the scores and vectors of pairs that the objective is made of.

        Args:
            text: (B, D), as the others in `loss`.
            frames: (B, T, D).
            fused: (B, T, D).
            patches: (B, T, P, D), or None.
            mask: (B, T) bool, or None.

        Returns:
            Scores (B, B) and vectors (B, D); None for patches without a weight.
        """
        video = self.recall_video(fused, mask)
        video_score = inner_products(self.recall_text(text), video)
        text = unit(text)
        frame_weak = self._frame_scores(["frame_weak"], text, frames, fused, mask)["frame_weak"]
        frame = pool_by_own_text(text, frames, fused, mask, self.frame_temperature)
        patch_weak = patch = None
        if patches is not None and self.weights.weak[2]:
            patch_weak = self._patch_scores(["patch_weak"], text, patches, mask)["patch_weak"]
        if patches is not None and self.weights.pools_patches:
            tokens, token_mask = flat_patches(patches, mask)
            patch = pool_by_own_text(text, tokens, None, token_mask, self.patch_temperature)
        scores = EercfScores(
            video_score,
            frame_weak,
            patch_weak,
            inner_products(text, frame),
            None if patch is None else inner_products(text, patch),
        )
        return scores, PairedVectors(text, video, frame, patch)

    def extra_repr(self) -> str:
        """Return the settings shown by `repr`."""
        frames = None if self.frame_logit_weight is None else len(self.frame_logit_weight)
        return f"dim={len(self.global_mat_weight)}, num_frames={frames}"

    def _frame_scores(
        self, names: Sequence[str], text: Tensor, frames: Tensor, fused: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute scores (A, B) of unit texts (A, D) and frames, by name."""
        return level_scores(
            names,
            text,
            frames,
            fused if "frame" in names else None,
            mask,
            weak_temperature=self.weak_temperature,
            gate_temperature=self.frame_temperature,
            mix=self.frame_logit_weight,
        )

    def _patch_scores(
        self, names: Sequence[str], text: Tensor, patches: Tensor, mask: Tensor | None
    ) -> dict[str, Tensor]:
        """Compute scores (A, B) of unit texts (A, D) and patches (B, T, P, D), by name."""
        tokens, mask = flat_patches(patches, mask)
        return level_scores(
            names,
            text,
            tokens,
            None,
            mask,
            weak_temperature=self.weak_temperature,
            gate_temperature=self.patch_temperature,
        )

    def _check(self, *features: Any) -> Tensor | None:
        """Check text, frames, fused, patches and mask, and return the mask as bool."""
        matrix = self.frame_logit_weight
        frames = None if matrix is None else len(matrix)
        return check_levels(*features, dim=len(self.global_mat_weight), num_frames=frames)
