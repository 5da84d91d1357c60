"""Everything a run depends on, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """What is rendered.

    Attributes:
        train: Training videos, even.
        validation: Validation videos, even.
        test: Test videos, even.
        seed: Of the training and validation videos.
        test_seed: Of the test videos.
        size: Side of a frame in pixels, as the tower sees it.
    """

    train: int = 700
    validation: int = 80
    test: int = 200
    seed: int = 0
    test_seed: int = 1
    size: int = 32

    def draw(self, split: str) -> tuple[int, int]:
        """Return the number of videos of a split and the seed they are drawn from."""
        return getattr(self, split), self.test_seed if split == "test" else self.seed


@dataclass(frozen=True, kw_only=True)
class TowerSettings:
    """The frozen dual encoder, the stand-in for a pretrained CLIP.

    Attributes:
        picture_steps: Steps on single frames of static moments.
        pair_steps: Steps on means of two frames, with the sentences of ordered moments too.
        batch_size: Moments in a batch.
        lr: Peak learning rate.
        text_lr_scale: The text tower learns at this multiple of `lr`.
        width: Width of the towers and of the features.
        layers: Transformer layers of each tower.
        patch: Side of a patch in pixels.
        seed: Of the weights and the batches.
    """

    picture_steps: int = 480
    pair_steps: int = 320
    batch_size: int = 64
    lr: float = 1e-3
    text_lr_scale: float = 1.0
    width: int = 64
    layers: int = 2
    patch: int = 8
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """One training on the frozen features.

    Attributes:
        method: Name of the method, one of `examples.moments.models.LABELS`.
        seed: Seed of the weights, the order of the videos and the dropout.
        epochs: Passes over the training videos.
        batch_videos: Videos in a batch, half of them twins of the others; with all sentences.
        lr: Peak learning rate.
        weight_decay: Decoupled weight decay.
        warmup: Share of the steps in which the learning rate rises linearly; a cosine follows.
        max_grad_norm: All gradients together are clipped to this norm.
        hidden: Width of the branches.
        heads: Attention heads.
        num_clips: Clips of a video.
        max_frames: Frames of the frame branch, where a method has one; longer videos are averaged
            to as many segments.
        dropout: Rate in the attention layers and the input blocks.
    """

    method: str = "mamfusion"
    seed: int = 0
    epochs: int = 20
    batch_videos: int = 32
    lr: float = 3e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    hidden: int = 64
    heads: int = 2
    num_clips: int = 32
    max_frames: int = 64
    dropout: float = 0.1

    @classmethod
    def of(cls, method: str, **fields: Any) -> RunSettings:
        """Make the settings of a method, for which some defaults differ."""
        return cls(method=method, **{**METHOD_DEFAULTS.get(method, {}), **fields})


METHOD_DEFAULTS: dict[str, dict[str, Any]] = {
    # A step reads all patch tokens of a window for each sentence: fewer videos at once, and fewer
    # passes, which take longer than those of the others.
    "muse": {"batch_videos": 6, "epochs": 2},
}
