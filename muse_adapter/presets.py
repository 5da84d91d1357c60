"""The training settings of the papers, per data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeVar

from muse_adapter.config import MamFusionConfig


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


@dataclass(frozen=True)
class MamFusionSettings:
    """MamFusion's published settings for one data set.

    Args:
        config: Of the model.
        lr: Peak learning rate, of the hosts' BertAdam.
        batch_size: Videos per step, each with all its sentences.
        epochs: Passes over the data.
        patience: Epochs without a better validation after which the training stops.
        weights: Of the clips' and frames' contrastive losses and the query-diverse loss.
        delta: Of the query-diverse loss.
        margin: Of the triplet losses.
        hard_negatives_from: First epoch with hard negatives in place of random ones: of a sentence
            a random one of the 20 videos with the highest scores, of a video the sentence with the
            highest score. `negatives="hardest"` takes the highest of both; others are indices.
        weight_decay: Weight decay of the parameters that are decayed.
        warmup: Fraction of all steps in which the learning rate rises linearly; it then falls
            linearly to 0.
    """

    config: MamFusionConfig
    lr: float
    batch_size: int
    epochs: int
    patience: int
    weights: tuple[float, float, float] = (0.027, 0.045, 0.015)
    delta: float = 0.2
    margin: float = 0.2
    hard_negatives_from: int = 20
    weight_decay: float = 0.01
    warmup: float = 0.01


Settings = TypeVar("Settings")


class _ByDataSet(dict[str, Settings]):
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

MAMFUSION_SETTINGS: Mapping[str, MamFusionSettings] = MappingProxyType(
    _ByDataSet(
        {
            "tvr": MamFusionSettings(
                # I3D beside ResNet-152
                MamFusionConfig(visual_width=3072, text_width=768),
                lr=4.5e-4,
                batch_size=256,
                epochs=200,
                patience=200,
            ),
            "activitynet": MamFusionSettings(
                MamFusionConfig(visual_width=1024, text_width=1024, max_frames=256, dropout=0.18),
                lr=4.5e-4,
                batch_size=64,
                epochs=200,
                patience=200,
            ),
            "charades": MamFusionSettings(
                MamFusionConfig(
                    visual_width=1024,
                    text_width=1024,
                    heads=4,
                    max_frames=1024,
                    input_dropout=0.15,
                    dropout=0.3,
                ),
                lr=3.8e-4,
                batch_size=64,
                epochs=400,
                patience=10,
                weights=(0.008, 0.01, 0.005),
                delta=0.15,
                hard_negatives_from=100,
            ),
        }
    )
)
