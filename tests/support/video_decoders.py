"""Videos as `datasets` gives them to mteb: decoders of torchcodec, or what stands for them."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import torch


class Decoder:
    """The part of torchcodec's `VideoDecoder` that mteb and this package use, by PyAV."""

    def __init__(self, path: str) -> None:
        with av.open(path) as container:
            self._frames = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
            rate = float(container.streams.video[0].average_rate)
        count = len(self._frames)
        self.metadata = SimpleNamespace(
            num_frames=count, average_fps=rate, end_stream_seconds=count / rate
        )

    def get_frames_at(self, indices: Sequence[int]) -> Any:
        frames = np.stack([self._frames[i] for i in indices])
        return SimpleNamespace(data=torch.from_numpy(frames).permute(0, 3, 1, 2))


def video_dataset(ids: Sequence[str], paths: Sequence[str]) -> Any:
    """Build a `datasets.Dataset` with the columns "id" and "video", decoded when it is read."""
    import datasets

    dataset = datasets.Dataset.from_dict({"id": list(ids), "video": list(paths)})
    try:
        import torchcodec  # noqa: F401
    except (ImportError, RuntimeError, OSError):  # without FFmpeg it cannot be imported
        return dataset.with_transform(_decoded)
    return dataset.cast_column("video", datasets.Video())


def _decoded(rows: dict[str, Any]) -> dict[str, Any]:
    if "video" not in rows:
        return rows
    return {**rows, "video": [Decoder(path) for path in rows["video"]]}
