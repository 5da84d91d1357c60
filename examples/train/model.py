"""The model of a run: a pretrained one with a new head, that may read stored tokens."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import Any

from sentence_transformers import SentenceTransformer
from torch import Tensor

from examples.train.processes import rank_and_world
from examples.train.settings import RunSettings
from examples.train.tokens import StoredTokens
from muse_adapter import MultiScaleMamba, VideoEncoder
from muse_adapter.sentence_transformers import VideoTransformer

logger = logging.getLogger(__name__)


class RunModel(SentenceTransformer):
    """A model with what belongs to a run and is not saved with it.

    Attributes:
        skip_unreadable: Whether a video that cannot be read has no frames instead of being an
            error.
        stored: The tokens that are read in place of videos; None: the videos are read.
    """

    skip_unreadable = False
    stored: StoredTokens | None = None

    def read_from(self, stored: StoredTokens) -> None:
        """Read stored tokens in place of videos from now on."""
        self.stored = stored
        self[0].encoder = TokenEncoder(self[0].encoder, stored.cached.grid)

    def preprocess(
        self, inputs: Sequence[Any], prompt: str | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """Tokenize texts, or read videos or their tokens."""
        if self.stored is not None and all(video in self.stored for video in inputs):
            return self.stored.features(inputs)
        options = {"video": {"skip_unreadable": self.skip_unreadable}}
        return super().preprocess(inputs, prompt, processing_kwargs=options, **kwargs)


class TokenEncoder(VideoEncoder):
    """A frozen encoder that takes tokens (B, T, N, C) of its backbone in place of frames too.

    Args:
        encoder: The encoder whose backbone and head it gets.
        grid: Patch grid (H, W) of the tokens.
    """

    def __init__(self, encoder: VideoEncoder, grid: tuple[int, int] | None) -> None:
        super().__init__(encoder.backbone, encoder.head, freeze=True)
        self.grid = grid

    def forward_tokens(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Return the tokens that are the head's input."""
        if frames.ndim == 4:
            return frames.to(next(self.head.parameters()).dtype)
        return super().forward_tokens(frames, frame_mask)

    def grid_of(
        self, frames: Tensor, grid: tuple[int, int] | None = None
    ) -> tuple[int, int] | None:
        """Return the patch grid of frames or tokens."""
        return self.grid if frames.ndim == 4 else super().grid_of(frames, grid)


def build_model(settings: RunSettings, *, skip_unreadable: bool = False) -> RunModel:
    """Build the model: a pretrained one with a new head."""
    module = VideoTransformer(
        settings.model, num_frames=settings.frames, fps=settings.fps, freeze=settings.freeze
    )
    inputs = module.text_inputs
    length = inputs.full_length or min(settings.words, inputs.max_length)
    if length != settings.words and rank_and_world()[0] == 0:
        message = "captions are cut to %d tokens, as %s needs, and not to %d"
        logger.warning(message, length, settings.model, settings.words)
    module.max_seq_length = length
    config = dataclasses.replace(module.head.config, depth=settings.depth, dropout=settings.dropout)
    if config != module.head.config:
        module.encoder.head = MultiScaleMamba(config)
    model = RunModel(modules=[module])
    model.skip_unreadable = skip_unreadable
    return model
