"""Captions of videos: one each, joined to paragraphs, and held out of the training."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import NamedTuple


class VideoCaption(NamedTuple):
    """One caption of one video.

    Attributes:
        video: Name of the video in its data set.
        text: What it shows.
    """

    video: str
    text: str


def join_captions(captions: Iterable[VideoCaption]) -> list[VideoCaption]:
    """Join the captions of each video to one, in their order, as paragraph retrieval does."""
    texts: dict[str, list[str]] = {}
    for caption in captions:
        texts.setdefault(caption.video, []).append(caption.text)
    return [VideoCaption(video, " ".join(parts)) for video, parts in texts.items()]


def hold_out(
    captions: Sequence[VideoCaption], share: float, seed: int = 0
) -> tuple[list[VideoCaption], list[VideoCaption]]:
    """Set videos with all their captions aside, for data sets without a validation part.

    Args:
        captions: Of the training part.
        share: Share of the videos, between 0 and 1; at least one video is set aside.
        seed: Of the draw.

    Returns:
        The captions that are left, and those of the videos set aside, both in the given order.

    Raises:
        ValueError: `share` is out of range, or no video would be left.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must be between 0 and 1, got {share}")
    videos = sorted({caption.video for caption in captions})
    if len(videos) < 2:
        raise ValueError(f"holding videos out needs at least 2, got {len(videos)}")
    count = min(max(1, round(share * len(videos))), len(videos) - 1)
    held = set(random.Random(seed).sample(videos, count))
    left = [caption for caption in captions if caption.video not in held]
    return left, [caption for caption in captions if caption.video in held]
