"""The training settings of the papers, per data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class TrainingSettings:
    """The paper's settings for one data set; None where no published source gives the value.

    Args:
        frames: Frames per video (T).
        words: Words per caption.
        lr: Learning rate of the parameters in neither head nor backbone.
        head_lr_scale: Factor on `lr` for the head.
        backbone_lr_scale: Factor on `lr` for the backbone (`coef_lr` of CLIP4Clip).
        weight_decay: Weight decay of the parameters that are decayed.
        warmup: Fraction of all steps in which the learning rate rises linearly.
        depth: Mixer layers of the head.
        sides: Side lengths of the maps on the 7x7 grid of ViT-B/32, see `MuseConfig.from_sides`.
        batch_size: Videos per step, over all devices.
        epochs: Passes over the data.
    """

    frames: int
    words: int
    lr: float = 1e-4
    head_lr_scale: float = 10.0
    backbone_lr_scale: float = 1e-3
    weight_decay: float = 0.2
    warmup: float = 0.1
    depth: int = 4
    sides: tuple[int, ...] = (1, 3, 7, 14)
    batch_size: int | None = None
    epochs: int | None = None


class _ByDataSet(dict[str, TrainingSettings]):
    """Settings by data set; an unknown name is answered with the known ones."""

    def __missing__(self, name: object) -> TrainingSettings:
        raise KeyError(f"unknown data set {name!r}; known are {', '.join(self)}")


# Batch size and epochs of MSR-VTT are those of the published training log, the only one there is.
PAPER_SETTINGS: Mapping[str, TrainingSettings] = MappingProxyType(
    _ByDataSet(
        {
            "msrvtt": TrainingSettings(frames=12, words=32, batch_size=128, epochs=5),
            "didemo": TrainingSettings(frames=64, words=64),
            "activitynet": TrainingSettings(frames=64, words=64),
        }
    )
)
