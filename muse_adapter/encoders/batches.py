"""The embeddings of a whole data set, computed in batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from muse_adapter.encoders.text import Text
from muse_adapter.encoders.video_text import VideoTextModel


def embed_videos(
    model: VideoTextModel, frames: Tensor, frame_mask: Tensor | None = None, *, batch_size: int = 32
) -> Tensor:
    """Embed all videos of a data set, in evaluation mode and without gradients.

    Args:
        model: The model; its mode is restored afterwards.
        frames: (n, T, 3, height, width), as `model.encode_video` takes them. A batch at a time is
            moved to the model's device.
        frame_mask: (n, T), or None.
        batch_size: Videos encoded at once.

    Returns:
        (n, D), float32, on the CPU.
    """
    device = model.logit_scale.device
    with _evaluation(model):
        embeddings = [
            model.encode_video(
                frames[batch].to(device),
                None if frame_mask is None else frame_mask[batch].to(device),
            )
            for batch in _batches(len(frames), batch_size)
        ]
        return torch.cat(embeddings).float().cpu()


def embed_texts(model: VideoTextModel, text: Text, *, batch_size: int = 32) -> Tensor:
    """Embed all texts of a data set, in evaluation mode and without gradients.

    Args:
        model: The model; its mode is restored afterwards.
        text: What the tower's own tokenizer gives for n texts: token ids (n, L), or a mapping of
            tensors. A batch at a time is moved to the model's device.
        batch_size: Texts encoded at once.

    Returns:
        (n, D), float32, on the CPU.
    """
    device = model.logit_scale.device
    count = len(next(iter(text.values())) if isinstance(text, Mapping) else text)
    with _evaluation(model):
        embeddings = [
            model.encode_text(
                {name: value[batch].to(device) for name, value in text.items()}
                if isinstance(text, Mapping)
                else text[batch].to(device)
            )
            for batch in _batches(count, batch_size)
        ]
        return torch.cat(embeddings).float().cpu()


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        with torch.no_grad():  # what is trained on the embeddings could not use inference tensors
            yield
    finally:
        model.train(training)


def _batches(count: int, size: int) -> list[slice]:
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    if count < 1:
        raise ValueError("expected at least one video or text to embed, got none")
    return [slice(start, start + size) for start in range(0, count, size)]
