"""What the frozen tower makes of a split: features of frames and words, on which models train."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from examples.moments.moments import LongVideo, State
from examples.moments.tower import Tower


@dataclass(frozen=True)
class Features:
    """Features of a split; V videos with Q sentences.

    Attributes:
        frames: (V, T, D), the class tokens.
        frame_mask: Bool (V, T).
        words: (Q, W, D).
        word_mask: Bool (Q, W).
        sentences: (Q, D), the means of the words.
        video: Int64 (Q,), the video of each sentence.
        others: Bool (Q, V), True where a sentence is true of another video than its own.
        tokens: (V, T, N, D), all tokens of the frames, class tokens first, in half precision; None
            where no method needs them.
    """

    frames: Tensor
    frame_mask: Tensor
    words: Tensor
    word_mask: Tensor
    sentences: Tensor
    video: Tensor
    others: Tensor
    tokens: Tensor | None = None

    def select(self, videos: Tensor) -> Features:
        """Return some videos, int64 (B,), with all their sentences."""
        place = torch.full((len(self.frames),), -1)
        place[videos] = torch.arange(len(videos))
        rows = (place[self.video] >= 0).nonzero()[:, 0]
        length = int(self.frame_mask[videos].sum(1).max())
        return Features(
            frames=self.frames[videos, :length],
            frame_mask=self.frame_mask[videos, :length],
            words=self.words[rows],
            word_mask=self.word_mask[rows],
            sentences=self.sentences[rows],
            video=place[self.video[rows]],
            others=self.others[rows][:, videos],
            tokens=None if self.tokens is None else self.tokens[videos, :length],
        )


def encode_split(
    tower: Tower,
    videos: Sequence[LongVideo],
    frames: Sequence[Tensor],
    *,
    progress: bool = True,
) -> Features:
    """Encode the frames and the sentences of a split.

    Args:
        tower: The trained tower.
        videos: The videos of the split.
        frames: Their frames.
        progress: Whether to show a progress bar.
    """
    moments = [moment for video in videos for moment in video.moments]
    with torch.inference_mode():
        bar = tqdm(frames, desc="encode", unit="video", disable=not progress)
        encoded = [tower.encode_frames(video)[:, 0] for video in bar]
        sentences = [moment.sentence for moment in moments]
        words, word_mask = tower.encode_words(sentences)
        means = tower.encode_sentences(sentences)
    video = torch.tensor([n for n, video in enumerate(videos) for _ in video.moments])
    lengths = torch.tensor([len(video) for video in encoded])
    padded = pad_sequence(encoded, batch_first=True)
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return Features(padded, mask, words, word_mask, means, video, true_of_others(videos))


def encode_tokens(tower: Tower, frames: Sequence[Tensor], *, progress: bool = True) -> Tensor:
    """Encode the frames of a split to `Features.tokens`."""
    bar = tqdm(frames, desc="encode tokens", unit="video", disable=not progress)
    with torch.inference_mode():
        encoded = [tower.encode_frames(video).half() for video in bar]
    return pad_sequence(encoded, batch_first=True)


def true_of_others(videos: Sequence[LongVideo]) -> Tensor:
    """Find which sentences are true of other videos: bool (Q, V), as `Features.others`."""
    shown: dict[tuple[State, ...], set[int]] = {}
    for number, video in enumerate(videos):
        states = video.states
        for i in range(len(states)):
            shown.setdefault((states[i],), set()).add(number)
            shown.setdefault(tuple(states[i : i + 2]), set()).add(number)
    moments = [(number, moment) for number, video in enumerate(videos) for moment in video.moments]
    others = torch.zeros(len(moments), len(videos), dtype=torch.bool)
    for row, (own, moment) in enumerate(moments):
        others[row, sorted(shown[tuple(moment.states)] - {own})] = True
    return others
