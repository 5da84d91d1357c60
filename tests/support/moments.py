"""What the tests of the example of moments share: a tiny corpus, tower and run."""

from __future__ import annotations

import torch

from examples.moments.features import Features, true_of_others
from examples.moments.moments import LongVideo, sample_videos
from examples.moments.settings import Corpus, RunSettings, TowerSettings

CORPUS = Corpus(train=8, validation=4, test=4, size=16)
TOWER = TowerSettings(picture_steps=2, pair_steps=2, batch_size=4, width=16, layers=1)
RUN = RunSettings(epochs=2, batch_videos=4, hidden=16, num_clips=8)


def random_features(count: int = 6, width: int = 16) -> tuple[Features, list[LongVideo]]:
    """Features drawn at random, and the videos they would be of."""
    videos = sample_videos("validation", count, seed=5)
    rows = [number for number, video in enumerate(videos) for _ in video.moments]
    lengths = torch.tensor([video.num_frames for video in videos])
    length = int(lengths.max())
    words = torch.randn(len(rows), 5, width)
    features = Features(
        frames=torch.randn(count, length, width),
        frame_mask=torch.arange(length) < lengths[:, None],
        words=words,
        word_mask=torch.ones(len(rows), 5, dtype=torch.bool),
        sentences=words.mean(1),
        video=torch.tensor(rows),
        others=true_of_others(videos),
        tokens=torch.randn(count, length, 5, width).half(),
    )
    return features, videos
