"""Where in a video a sentence is true: the best clip, grown to a span of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from examples.moments.features import Features
from examples.moments.models import ClipModel
from examples.moments.moments import LongVideo
from examples.moments.untrained import STRIDE, WINDOWS
from muse_adapter.layers.pairs import unit

KEEP = 0.2  # chosen on the validation videos
Spans = list[tuple[int, int]]


def clip_moments(model: ClipModel, features: Features) -> Spans:
    """Localise each sentence in its own video by MamFusion's clips.

    Args:
        model: The trained model.
        features: Q sentences and their videos.

    Returns:
        First and last frame of each sentence's moment, both inclusive.
    """
    clips = model.encode_video(features).clips[features.video]  # (Q, K, D)
    cosines = torch.einsum("qd,qkd->qk", unit(model.encode_text(features)), unit(clips))
    lengths = features.frame_mask.sum(1)[features.video].tolist()
    return [
        grow(scores, model.model.clip_spans(length))
        for scores, length in zip(cosines, lengths, strict=True)
    ]


def grow(scores: Tensor, spans: Tensor) -> tuple[int, int]:
    """Grow the best clip to its neighbours, as far as their scores stand out.

    A score stands out if it is above the mean of all by a fifth (`KEEP`) of what the best is.

    Args:
        scores: (K,), of the clips.
        spans: (K, 2), their first and last frames.
    """
    best = first = last = int(scores.argmax())
    enough = scores >= scores.mean() + KEEP * (scores[best] - scores.mean())
    while first > 0 and enough[first - 1]:
        first -= 1
    while last + 1 < len(scores) and enough[last + 1]:
        last += 1
    return int(spans[first, 0]), int(spans[last, 1])


def window_moments(features: Features) -> Spans:
    """Localise each sentence in its own video by the best sliding window of frozen features."""
    found: list[tuple[float, tuple[int, int]]] = [(-2.0, (0, 0))] * len(features.video)
    for length in WINDOWS:
        means = unit(unit(features.frames).unfold(1, length, STRIDE).mean(-1))[features.video]
        inside = features.frame_mask.unfold(1, length, STRIDE).all(-1)[features.video]
        cosines = torch.einsum("qd,qwd->qw", unit(features.sentences), means)
        best = cosines.masked_fill(~inside, -1).max(1)
        for row, (score, place) in enumerate(zip(*map(Tensor.tolist, best), strict=True)):
            span = (place * STRIDE, place * STRIDE + length - 1)
            found[row] = max(found[row], (score, span))
    return [span for _, span in found]


def splice(features: Features, videos: Sequence[LongVideo]) -> tuple[Features, Spans]:
    """Make videos in which the contents of a moment come twice, in both orders.

    For each ordered sentence, its own video, with one of the static moments replaced by the
    twin's moment of the same contents in the other order. Who is blind to order finds the right
    one of the two in half of the cases.

    Args:
        features: Of a split.
        videos: Its videos.

    Returns:
        The features of one video for each ordered sentence, and where the sentence is true.
    """
    number = {video.id: n for n, video in enumerate(videos)}
    frames, rows, spans = [], [], []
    row = 0
    for own, video in enumerate(videos):
        twin = number[video.twin]
        static = [i for i, moment in enumerate(video.moments) if not moment.ordered]
        for place, moment in enumerate(video.moments):
            if moment.ordered:
                swapped = videos[twin].moments.index(moment.swapped())
                parts = [features.frames[own, a : b + 1] for a, b in video.spans]
                a, b = videos[twin].spans[swapped]
                parts[static[row % len(static)]] = features.frames[twin, a : b + 1]
                start = sum(len(part) for part in parts[:place])
                spans.append((start, start + len(parts[place]) - 1))
                frames.append(torch.cat(parts))
                rows.append(row)
            row += 1
    lengths = torch.tensor([len(video) for video in frames])
    padded = pad_sequence(frames, batch_first=True)
    spliced = Features(
        frames=padded,
        frame_mask=torch.arange(padded.shape[1]) < lengths[:, None],
        words=features.words[rows],
        word_mask=features.word_mask[rows],
        sentences=features.sentences[rows],
        video=torch.arange(len(rows)),
        others=torch.zeros(len(rows), len(rows), dtype=torch.bool),
    )
    return spliced, spans


def localisation(
    localise: Callable[[Features], Spans], features: Features, videos: Sequence[LongVideo]
) -> float:
    """Measure how often a sentence is localised in a spliced video: percent with IoU >= 0.5."""
    spliced, wanted = splice(features, videos)
    with torch.inference_mode():
        found = localise(spliced)
    hits = [overlap(*pair) >= 0.5 for pair in zip(found, wanted, strict=True)]
    return 100 * sum(hits) / len(hits)


def overlap(one: tuple[int, int], other: tuple[int, int]) -> float:
    """Compute intersection over union of two spans of frames, ends inclusive."""
    shared = min(one[1], other[1]) - max(one[0], other[0]) + 1
    union = max(one[1], other[1]) - min(one[0], other[0]) + 1
    return max(0, shared) / union
