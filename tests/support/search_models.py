"""Tiny models for the index, and tables of made-up segments."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from muse_adapter.data import read_frames
from muse_adapter.search.segments import Settings, VideoSegments
from tests.support.video_files import write_video

DIM = 8


def level_vector(level: float) -> Tensor:
    """Return a vector (DIM,) that turns with a grey level from 0 to 255."""
    vector = torch.zeros(DIM)
    vector[0], vector[1] = math.cos(level / 85), math.sin(level / 85)
    return vector


def level_in(query: str) -> float:
    """Return the number at the end of a text, if it has one."""
    last = query.split()[-1]
    return float(last) if last.isdigit() else 30.0


class FrameModel(nn.Module):
    """Embed frames by their mean grey level, and texts that name one: "grey 120"."""

    num_frames = 4

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Linear(DIM, DIM)
        with torch.no_grad():
            self.scale.weight.copy_(torch.eye(DIM))
            self.scale.bias.zero_()
        self.documents: list[Any] = []  # those that were given

    def encode_query(self, queries: list[str]) -> Tensor:
        vectors = torch.stack([level_vector(level_in(query)) for query in queries])
        return self.scale(vectors.to(self.scale.weight.dtype)).float()

    def encode_document(self, documents: list[Any], output_value: str | None = "") -> Any:
        self.documents += documents
        frames = [self.frames(document) for document in documents]
        pooled = torch.stack([each.mean(0) for each in frames])
        if output_value is not None:
            return pooled
        return [
            {
                "sentence_embedding": vector,
                # One row of padding, as in a batch.
                "token_embeddings": torch.cat([each, each.new_full((1, DIM), torch.nan)]),
                "attention_mask": torch.tensor([1] * len(each) + [0]),
            }
            for vector, each in zip(pooled, frames, strict=True)
        ]

    def frames(self, document: Tensor) -> Tensor:
        levels = document.float().mean((1, 2, 3))
        return self.scale(torch.stack([level_vector(float(level)) for level in levels]))

    def score_frames(self, query: Tensor, frames: list[Tensor]) -> Tensor:
        """The best frame, where the embedding is the mean."""
        units = [nn.functional.normalize(each, dim=1) for each in frames]
        return torch.stack([(each @ query).amax() for each in units])


class PathModel:
    """Embed videos by their paths, which it reads itself."""

    def encode_query(self, queries: list[str]) -> list[list[float]]:
        return [level_vector(level_in(query)).tolist() for query in queries]

    def encode_document(self, documents: list[str]) -> Any:
        means = [float(read_frames(path, 2)[0].float().mean()) for path in documents]
        return torch.stack([level_vector(mean) for mean in means]).numpy()


def write_greys(folder: Path, *levels: Sequence[int], rate: int = 4) -> list[str]:
    """Write videos whose frames have the given grey levels, and return their paths."""
    paths = []
    for frames in levels:
        path = folder / f"{'-'.join(map(str, dict.fromkeys(frames)))}.mp4"
        pictures = [np.full((16, 16, 3), level, dtype=np.uint8) for level in frames]
        paths.append(str(write_video(path, pictures, rate=rate)))
    return paths


def settings(**changes: Any) -> Settings:
    """Return settings of a small table with frame features."""
    return Settings(**{"dim": DIM, "frame_features": True, **changes})


def segments_of(video: str, seed: int, count: int = 2) -> VideoSegments:
    """Make up a video of some segments with frame features."""
    generator = torch.Generator().manual_seed(seed)
    vectors = nn.functional.normalize(torch.randn(count, DIM, generator=generator), dim=1)
    spans = [(float(i), i + 1.5) for i in range(count)]
    frames = [torch.randn(1 + i % 3, 6, generator=generator) for i in range(count)]
    return VideoSegments(video, spans, vectors, frames)
