"""Everything a training run depends on, in one place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

from muse_adapter import __version__


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one run; two runs with equal settings and clips give equal results.

    Attributes:
        head: Name of the video head, one of `examples.quickstart.model.HEADS`.
        objective: What is trained: "contrastive" (CLIP's loss on embeddings), "eercf" (EERCF's
            objective) or "mean_max_sim" (SigLIP's loss on Video-ColBERT's late interaction).
        seed: Seed of the weights, the order of the clips and the dropout.
        steps: Optimiser steps.
        batch_size: Clips in a batch.
        lr: Peak learning rate of the image tower and the logit scale.
        head_lr_scale: The head learns at this multiple of `lr`. Towers from nothing want 1e-3,
            and so small a head stays at chance at ten times that; with a pretrained backbone the
            multiple is the paper's 10.
        text_lr_scale: The text tower learns at this multiple of `lr`. At the full rate it learns
            within a hundred steps that "left" and "right" are noise, long before the head can tell
            them apart, and the words come back late or never. Unused with `backbone`.
        weight_decay: Decoupled weight decay.
        warmup: Share of the steps in which the learning rate rises linearly; a cosine follows.
        max_grad_norm: All gradients together are clipped to this norm.
        width: Width of the two towers and of the head. Unused with `backbone`.
        depth: Layers of the head.
        vision_layers: Layers of the image tower. Unused with `backbone`.
        text_layers: Layers of the text tower. Unused with `backbone`.
        patch: Side of a patch in pixels. Unused with `backbone`.
        size: Side of a frame in pixels.
        num_frames: Frames sampled from a clip.
        backbone: Folder of a pretrained Hugging Face CLIP, or None for towers from nothing.
        train_backbone: Whether the pretrained towers learn too.
    """

    head: str = "muse"
    objective: str = "contrastive"
    seed: int = 0
    steps: int = 600
    batch_size: int = 32
    lr: float = 1e-3
    head_lr_scale: float = 5.0
    text_lr_scale: float = 0.1
    weight_decay: float = 0.2
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    width: int = 64
    depth: int = 2
    vision_layers: int = 2
    text_layers: int = 2
    patch: int = 8
    size: int = 32
    num_frames: int = 8
    backbone: str | None = None
    train_backbone: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "size", "num_frames"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.backbone is None and self.size % self.patch:
            raise ValueError(f"size must be a multiple of {self.patch}, got {self.size}")
        if self.train_backbone and self.backbone is None:
            raise ValueError("train_backbone needs a backbone; towers from nothing always learn")

    @property
    def frozen(self) -> bool:
        """Whether both towers come from a backbone that does not learn."""
        return self.backbone is not None and not self.train_backbone

    @property
    def learns(self) -> bool:
        """Whether training changes more than a temperature: mean pooling has no parameters."""
        return not (self.frozen and self.head == "mean_pool")

    def backbone_name(self, clips: str) -> str:
        """Name what the frozen backbone makes of clips with this fingerprint."""
        return fingerprint([self.backbone, self.num_frames, self.size, clips, __version__])

    def run_name(self, clips: str) -> str:
        """Name the folder of this run.

        Args:
            clips: Fingerprint of the clips, see `fingerprint`.

        Returns:
            Head, seed and eight digits that change with any other setting, with the clips and
            with the version of the package, so that no run is mistaken for another.
        """
        return f"{self.head}-seed{self.seed}-{fingerprint([asdict(self), clips, __version__])}"


def fingerprint(value: object) -> str:
    """Compute eight hexadecimal digits of the SHA-256 of `value` written as JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]
