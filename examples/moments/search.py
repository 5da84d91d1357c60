"""The test videos in an index: MamFusion's clips are its segments."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from examples.moments.corpus import path_of
from examples.moments.material import Material
from examples.moments.models import ClipModel
from muse_adapter.search import VideoIndex

INDEX = "search.index"
Segments = tuple[Tensor, Tensor]


class SearchModel:
    """A trained model as an index takes it; the videos are the test videos, by their features.

    Args:
        model: The model.
        material: The corpus; its tower encodes the sentences.
    """

    def __init__(self, model: ClipModel, material: Material) -> None:
        self.model, self.tower = model, material.tower
        self._features = material.features["test"]
        self._rows = {
            str(path_of(video, material.folder)): row
            for row, video in enumerate(material.videos["test"])
        }

    @property
    def videos(self) -> list[str]:
        """Paths of the videos."""
        return list(self._rows)

    def encode_query(self, sentences: list[str]) -> Tensor:
        """Encode sentences: (Q, D)."""
        words, mask = self.tower.encode_words(sentences)
        means = self.tower.encode_sentences(sentences)
        return self.model.model.encode_text(words, mask, sentence=means)

    def encode_segments(self, paths: list[str]) -> list[Segments]:
        """Encode videos: for each the vectors (K, D) of its clips, and their spans (K, 2)."""
        rows = [self._rows[path] for path in paths]
        frames, mask = self._features.frames[rows], self._features.frame_mask[rows]
        code = self.model.model.encode_video(frames, mask)
        vectors = code.folded(clip_weight=self.model.clip_weight)
        return [
            (video, self._spans(int(length)))
            for video, length in zip(vectors, mask.sum(1), strict=True)
        ]

    def _spans(self, num_frames: int) -> Tensor:
        """Return the start and end of each clip, as fractions of a video."""
        first_and_last = self.model.model.clip_spans(num_frames)
        return (first_and_last + torch.tensor([0, 1])).double() / num_frames


def index_videos(folder: Path, model: ClipModel, material: Material) -> VideoIndex:
    """Make the index of the test videos, in place of one of another model."""
    place = folder / INDEX
    if place.exists():
        shutil.rmtree(place)
    search_model = SearchModel(model.eval(), material)
    index = VideoIndex.create(place, search_model)
    index.add(search_model.videos, batch_size=32, progress=False)
    return index
