"""The dual encoder: a text tower and a video tower whose embeddings meet by cosine similarity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.quickstart.heads import build_head
from examples.quickstart.settings import Settings
from examples.quickstart.text import TextTower, WordTokenizer
from examples.quickstart.vision import TinyViT
from muse_adapter import VideoEncoder

MAX_LOGIT_SCALE = math.log(100)


class Tokenizer(Protocol):
    """What training and search ask of a tokenizer."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 (len(texts), L)."""
        ...

    def warnings(self, text: str) -> list[str]:
        """What of a query the model cannot know, as sentences."""
        ...

    def state(self) -> dict:
        """What `WordTokenizer` is made from again; empty when it comes from a folder."""
        ...


class DualEncoder(nn.Module):
    """Text tower, video tower, learned logit scale.

    Args:
        text: token ids (B, L) -> (B, D).
        video: frames (B, T, 3, height, width), mask (B, T) -> (B, D); its `head` is the video head.
        mean: of the three colours, in [0, 1], taken from the frames.
        std: of the three colours, by which the frames are then divided.
        logit_scale: logarithm of the scale at the start.
        frozen: names of the submodules that do not learn; they are not in `own_state`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        text: nn.Module,
        video: VideoEncoder,
        *,
        mean: Sequence[float] = (0.5, 0.5, 0.5),
        std: Sequence[float] = (0.5, 0.5, 0.5),
        logit_scale: float = math.log(1 / 0.07),
        frozen: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.text = text
        self.video = video
        self.logit_scale = nn.Parameter(torch.tensor(logit_scale))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)
        self.frozen = tuple(frozen)
        for name in frozen:
            self.get_submodule(name).requires_grad_(False)

    def encode_text(self, ids: Tensor) -> Tensor:
        """int64 (B, L) to (B, D), of unit norm."""
        return F.normalize(self.text(ids), dim=-1)

    def encode_video(self, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """uint8 (B, T, 3, height, width) and bool (B, T) to (B, D), of unit norm."""
        return self.video((frames / 255 - self.mean) / self.std, frame_mask)

    def forward(self, ids: Tensor, frames: Tensor, frame_mask: Tensor) -> Tensor:
        """Logits (B texts, B videos)."""
        similarity = self.encode_text(ids) @ self.encode_video(frames, frame_mask).T
        return self.logit_scale.exp() * similarity

    def train(self, mode: bool = True) -> DualEncoder:
        """Like `nn.Module.train`, but what is frozen stays in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def own_state(self) -> dict[str, Tensor]:
        """The state without what is frozen, which comes from the folder of the backbone again."""
        state = self.state_dict()
        return {name: value for name, value in state.items() if not self._is_frozen(name)}

    def load_own_state(self, state: dict[str, Tensor]) -> None:
        """Load what `own_state` returned.

        Raises:
            ValueError: if tensors are missing or left over.
        """
        missing, unexpected = self.load_state_dict(state, strict=False)
        wrong = [name for name in missing if not self._is_frozen(name)] + unexpected
        if wrong:
            raise ValueError(f"checkpoint of another model: {', '.join(wrong)}")

    def _is_frozen(self, name: str) -> bool:
        return any(name.startswith(f"{module}.") for module in self.frozen)


def build_model(settings: Settings, tokenizer: Tokenizer) -> DualEncoder:
    """The model of a run, drawn from `settings.seed`; every head of one seed gets the same towers.

    Args:
        settings: of the run.
        tokenizer: from `build_tokenizer` or `load_tokenizer`.
    """
    torch.manual_seed(settings.seed)
    if settings.backbone is not None:
        from examples.quickstart.pretrained import load_clip

        return load_clip(settings)
    assert isinstance(tokenizer, WordTokenizer)
    width = settings.width
    text = TextTower(
        vocabulary=len(tokenizer),
        length=1 + tokenizer.max_words,
        width=width,
        layers=settings.text_layers,
    )
    vision = TinyViT(
        size=settings.size, patch=settings.patch, width=width, layers=settings.vision_layers
    )
    head = build_head(
        settings.head, dim=width, depth=settings.depth, num_frames=settings.num_frames
    )
    return DualEncoder(text, VideoEncoder(vision, head, tokens=vision.forward))


def build_tokenizer(settings: Settings, captions: Sequence[str]) -> Tokenizer:
    """The tokenizer of a run: words of the training captions, or that of the backbone."""
    if settings.backbone is None:
        return WordTokenizer.from_captions(captions)
    return load_tokenizer(settings, {})


def load_tokenizer(settings: Settings, state: dict) -> Tokenizer:
    """The tokenizer that had this `state()`."""
    if settings.backbone is None:
        return WordTokenizer(**state)
    from examples.quickstart.pretrained import ClipTokenizer

    return ClipTokenizer(settings.backbone)
