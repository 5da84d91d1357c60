"""The configurations of the models."""

from muse_adapter.config.mamfusion import MamFusionConfig
from muse_adapter.config.muse import (
    AGGREGATIONS,
    ATTENTION_HEAD_DIM,
    INITS,
    MIXERS,
    SCALES,
    MuseConfig,
)

__all__ = [
    "AGGREGATIONS",
    "ATTENTION_HEAD_DIM",
    "INITS",
    "MIXERS",
    "SCALES",
    "MamFusionConfig",
    "MuseConfig",
]
