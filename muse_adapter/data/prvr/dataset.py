"""Videos with all their captions: the data set of partially relevant retrieval, and its batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from muse_adapter.data.prvr.captions import Caption
from muse_adapter.layers.segments import segment_means


class PrvrVideo(NamedTuple):
    """A video with its captions.

    Attributes:
        frames: (T, C).
        words: (W, C) of each caption, C another width.
        sentences: (C,) of each caption; empty if the data set has none.
    """

    frames: Tensor
    words: list[Tensor]
    sentences: list[Tensor]


class PrvrBatch(NamedTuple):
    """A batch of V videos with all their Q captions: `MamFusion.loss(**batch._asdict())`.

    Attributes:
        words: (Q, W, C), zeros behind the end of a caption.
        word_mask: Bool (Q, W).
        frames: (V, T, C), zeros behind the end of a video.
        frame_mask: Bool (V, T).
        labels: (Q,) the video of each caption.
        sentence: (Q, C), or None if the data set has none.
    """

    words: Tensor
    word_mask: Tensor
    frames: Tensor
    frame_mask: Tensor
    labels: Tensor
    sentence: Tensor | None = None

    def to(self, device: torch.device | str) -> PrvrBatch:
        """Move the batch to a device."""
        return PrvrBatch(
            self.words.to(device),
            self.word_mask.to(device),
            self.frames.to(device),
            self.frame_mask.to(device),
            self.labels.to(device),
            None if self.sentence is None else self.sentence.to(device),
        )


class PrvrDataset(Dataset[PrvrVideo]):
    """The videos that captions describe, in the order in which they first occur.

    Features come raw: `MamFusion` cuts, averages and normalises them as the published loaders do.

    Args:
        captions: Of one split.
        frames: Features (T, C) by video; any mapping, such as `BinaryFeatures`, `Hdf5Features`,
            `CachedFrames` or a dict.
        words: Features (W, C) by caption id, likewise.
        sentences: Features (C,) or (1, C) by caption id, for models with `residual="concat"`.
        max_frames: Average longer videos to so many segments when they are read, as the published
            loaders do for the frame branch, for models that do not do it themselves. The clips of
            `MamFusion` are cut from all frames, so leave it at None there.

    Attributes:
        videos: Their ids.
        captions: Captions of each video.

    Raises:
        ValueError: There is no caption, or videos or captions have no features; the message counts
            them and names the first.
    """

    def __init__(
        self,
        captions: Sequence[Caption],
        frames: Mapping[str, Tensor],
        words: Mapping[str, Tensor],
        *,
        sentences: Mapping[str, Tensor] | None = None,
        max_frames: int | None = None,
    ) -> None:
        if not captions:
            raise ValueError("expected at least one caption, got none")
        if max_frames is not None and max_frames < 1:
            raise ValueError(f"max_frames must be at least 1, got {max_frames}")
        by_video: dict[str, list[Caption]] = {}
        for caption in captions:
            by_video.setdefault(caption.video, []).append(caption)
        ids = [caption.id for caption in captions]
        problems = [
            _without_features("videos", list(by_video), "frame", frames),
            _without_features("captions", ids, "word", words),
            "" if sentences is None else _without_features("captions", ids, "sentence", sentences),
        ]
        if any(problems):
            raise ValueError("; ".join(filter(None, problems)))
        self.videos = list(by_video)
        self.captions = list(by_video.values())
        self.frames, self.words, self.sentences = frames, words, sentences
        self.max_frames = max_frames

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> PrvrVideo:
        frames = self.frames[self.videos[index]]
        if self.max_frames is not None and len(frames) > self.max_frames:
            length = torch.tensor([len(frames)])
            frames = segment_means(frames[None], length, self.max_frames)[0]
        ids = [caption.id for caption in self.captions[index]]
        sentences = self.sentences
        return PrvrVideo(
            frames,
            [self.words[name] for name in ids],
            [] if sentences is None else [_vector(sentences[name], name) for name in ids],
        )


def collate_prvr(videos: Sequence[PrvrVideo]) -> PrvrBatch:
    """Pad frames and words to the longest of a batch; the `collate_fn` of a `DataLoader`.

    Args:
        videos: Items of a `PrvrDataset`.

    Returns:
        The batch.

    Raises:
        ValueError: There is no video, or features have another shape, or differ in width.
    """
    if not videos:
        raise ValueError("expected at least one video in a batch, got none")
    captions = [len(video.words) for video in videos]
    labels = torch.arange(len(videos)).repeat_interleave(torch.tensor(captions))
    words, word_mask = _pad("words", [caption for video in videos for caption in video.words])
    frames, frame_mask = _pad("frames", [video.frames for video in videos])
    sentences = [sentence for video in videos for sentence in video.sentences]
    _check_width("sentences", sentences)
    sentence = torch.stack(sentences) if sentences else None
    return PrvrBatch(words, word_mask, frames, frame_mask, labels, sentence)


def _pad(name: str, sequences: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Pad sequences (L, C) to (n, longest, C), with their mask (n, longest)."""
    for sequence in sequences:
        if sequence.dim() != 2:
            raise ValueError(f"{name} must have shape (length, width), got {tuple(sequence.shape)}")
    _check_width(name, sequences)
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True), mask


def _check_width(name: str, features: list[Tensor]) -> None:
    widths = {feature.shape[-1] for feature in features}
    if len(widths) > 1:
        raise ValueError(f"{name} of a batch must have the same width, got {sorted(widths)}")


def _vector(sentence: Tensor, name: str) -> Tensor:
    if sentence.numel() != sentence.shape[-1]:
        raise ValueError(
            f"the sentence features of {name!r} must have shape (C,) or (1, C), got "
            f"{tuple(sentence.shape)}"
        )
    return sentence.reshape(-1)


def _without_features(
    what: str, names: Sequence[str], kind: str, features: Mapping[str, Tensor]
) -> str:
    """Say which names have no features; empty if all have."""
    lacking = [name for name in names if name not in features]
    if not lacking:
        return ""
    first = ", ".join(map(repr, lacking[:3])) + (", ..." if len(lacking) > 3 else "")
    return f"{len(lacking)} of {len(names)} {what} have no {kind} features: {first}"
