"""Methods without training: the frozen features of frames, compared as they are."""

from __future__ import annotations

import torch
from torch import Tensor

from examples.moments.features import Features
from muse_adapter.layers.pairs import unit

# Frames of the windows, and frames from one to the next; chosen on the validation videos.
WINDOWS, STRIDE = (16,), 4


def max_over_frames(features: Features) -> Tensor:
    """Score videos by the frame that is most similar to the sentence: (Q, V)."""
    return _best(features.sentences, features.frames, features.frame_mask)


def sliding_windows(features: Features, windows: tuple[int, ...] = WINDOWS) -> Tensor:
    """Score videos by the window whose mean is most similar to the sentence: (Q, V)."""
    frames = unit(features.frames)
    scores = [
        _best(
            features.sentences,
            frames.unfold(1, length, STRIDE).mean(-1),
            features.frame_mask.unfold(1, length, STRIDE).all(-1),
        )
        for length in windows
    ]
    return torch.stack(scores).amax(0)


def _best(sentences: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
    """Return the largest cosine of each sentence (Q, D) with the tokens (V, N, D) of each video."""
    cosines = torch.einsum("qd,vnd->qvn", unit(sentences), unit(tokens))
    return cosines.masked_fill(~mask, -1).amax(-1)
