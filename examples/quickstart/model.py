"""The model of a run: towers, one of the compared video heads, and its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from examples.quickstart.settings import Settings
from examples.quickstart.tokenizer import WordTokenizer
from examples.quickstart.towers import POSITION_STD, ImageTower, TextTower, WordTower
from muse_adapter import EERCF, MeanMaxSim, MultiScaleMamba, VideoEncoder, VideoTextModel
from muse_adapter.models import MeanPool, TemporalTransformer

MUSE_VARIANTS: dict[str, dict[str, Any]] = {
    "muse": {},
    "mamba": {"mixer": "mamba"},
    "attention": {"mixer": "attention"},
    "conv": {"mixer": "conv"},
    "frame_wise": {"aggregation": "frame_wise"},
    "spatial_wise": {"aggregation": "spatial_wise"},
}
"""MUSE and, after it, the paper's other mixers and aggregations: what differs from MUSE."""

HEADS = ("muse", "mean_pool", "temporal_transformer", *list(MUSE_VARIANTS)[1:])
OBJECTIVES = ("contrastive", "eercf", "mean_max_sim")


class Tokenizer(Protocol):
    """What training and search ask of a tokenizer."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize texts: int64 (len(texts), L)."""
        ...

    def warnings(self, text: str) -> list[str]:
        """Say in sentences what of a query the model cannot know."""
        ...

    def state(self) -> dict:
        """Return what `WordTokenizer` is made from again; empty when it comes from a folder."""
        ...


class QuickstartModel(VideoTextModel):
    """A `VideoTextModel` that takes frames as they are decoded, uint8.

    Args:
        encoder: The video encoder.
        text: The text tower.
        scorer: As for `VideoTextModel`.
        objective: As for `VideoTextModel`.
        mean: Mean of the three colours, in [0, 1], subtracted from the frames.
        std: Standard deviation of the three colours, by which the frames are then divided.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        encoder: VideoEncoder,
        text: nn.Module,
        *,
        scorer: EERCF | MeanMaxSim | None = None,
        objective: str = "contrastive",
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
    ) -> None:
        super().__init__(encoder, text, scorer=scorer, objective=objective)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def encode_video(self, frames: Tensor, frame_mask: Tensor | None = None) -> Tensor:
        """Embed videos: uint8 (B, T, 3, height, width) and bool (B, T) to (B, D), of unit norm.

        Tokens of a frozen backbone, (B, T, N, C), stand for their frames.
        """
        # The heads compare in float32 and normalise: to do so again would only round.
        if frames.ndim == 4:
            return self.encoder.head(frames, frame_mask)
        return self.encoder(self.prepare(frames), frame_mask)

    def encode_levels(
        self, frames: Tensor, frame_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute class tokens, frame features and patches; arguments as in `encode_video`.

        Returns:
            (B, T, D), (B, T, D) and (B, T, P, D), as from `VideoEncoder.forward_levels`.
        """
        if frames.ndim == 5:
            return self.encoder.forward_levels(self.prepare(frames), frame_mask)
        fused = self.encoder.head.forward_features(frames, frame_mask)
        return frames[:, :, 0], fused, frames[:, :, 1:]

    def prepare(self, frames: Tensor) -> Tensor:
        """Normalise the colours of uint8 frames (..., 3, height, width)."""
        return (frames / 255 - self.mean) / self.std

    def own_state(self) -> dict[str, Tensor]:
        """Return the state without what is frozen, which comes from the folder of the backbone."""
        frozen = self._frozen()
        return {name: value for name, value in self.state_dict().items() if name not in frozen}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` returned.

        Raises:
            ValueError: Tensors are missing or left over.
        """
        missing, unexpected = self.load_state_dict(state, strict=False)
        frozen = self._frozen()
        wrong = [name for name in missing if name not in frozen] + unexpected
        if wrong:
            raise ValueError(
                "the file is of another model or of another version of the quickstart, delete it "
                f"and start again; missing or left over: {', '.join(wrong)}"
            )

    def _frozen(self) -> set[str]:
        return {name for name, value in self.named_parameters() if not value.requires_grad}


def build_head(name: str, *, dim: int, depth: int, num_frames: int) -> nn.Module:
    """Build the head of a name in `HEADS`.

    Args:
        name: The head.
        dim: Width of the tokens and of the embedding.
        depth: Layers; mean pooling has none.
        num_frames: Most frames of a clip.

    Raises:
        ValueError: The name is another.
    """
    if name in MUSE_VARIANTS:
        return MultiScaleMamba(dim=dim, depth=depth, **MUSE_VARIANTS[name])
    if name == "mean_pool":
        return MeanPool()
    if name == "temporal_transformer":
        return TemporalTransformer(
            dim, depth=depth, max_frames=num_frames, position_std=POSITION_STD
        )
    raise ValueError(f"head must be one of {', '.join(HEADS)}, got {name!r}")


def build_objective(name: str, *, dim: int, num_frames: int) -> dict[str, Any]:
    """Return the arguments of `QuickstartModel` for an objective in `OBJECTIVES`.

    Args:
        name: The objective.
        dim: Width of the embedding.
        num_frames: Frames of a clip.

    Raises:
        ValueError: The name is another.
    """
    if name == "contrastive":
        return {}
    if name == "eercf":
        return {"scorer": EERCF(dim, num_frames)}
    if name == "mean_max_sim":
        return {"scorer": MeanMaxSim(), "objective": "sigmoid"}
    raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {name!r}")


def build_model(settings: Settings, tokenizer: Tokenizer) -> QuickstartModel:
    """Build the model of a run, drawn from its seed; every head of one seed gets the same towers.

    Args:
        settings: Settings of the run.
        tokenizer: The tokenizer, from `build_tokenizer` or `load_tokenizer`.
    """
    torch.manual_seed(settings.seed)
    if settings.backbone is not None:
        from examples.quickstart.pretrained import load_clip

        return load_clip(settings)
    assert isinstance(tokenizer, WordTokenizer)
    width = settings.width
    tower = WordTower if settings.objective == "mean_max_sim" else TextTower
    text = tower(
        vocabulary=len(tokenizer),
        length=1 + tokenizer.max_words,
        width=width,
        layers=settings.text_layers,
    )
    images = ImageTower(
        size=settings.size, patch=settings.patch, width=width, layers=settings.vision_layers
    )
    head = build_head(
        settings.head, dim=width, depth=settings.depth, num_frames=settings.num_frames
    )
    encoder = VideoEncoder(images, head, tokens=images.forward)
    objective = build_objective(settings.objective, dim=width, num_frames=settings.num_frames)
    return QuickstartModel(encoder, text, **objective)


def build_tokenizer(settings: Settings, captions: Sequence[str]) -> Tokenizer:
    """Make the tokenizer of a run: words of the training captions, or that of the backbone."""
    if settings.backbone is None:
        return WordTokenizer.from_captions(captions)
    return load_tokenizer(settings, {})


def load_tokenizer(settings: Settings, state: dict) -> Tokenizer:
    """Make the tokenizer that had this `state()`."""
    if settings.backbone is None:
        return WordTokenizer(**state)
    from examples.quickstart.pretrained import ClipTokenizer

    return ClipTokenizer(settings.backbone)
