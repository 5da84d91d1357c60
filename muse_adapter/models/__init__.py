"""Models on token features: the multi-scale Mamba head (MUSE) and CLIP4Clip's heads."""

from muse_adapter.models.baselines import MeanPool, TemporalTransformer
from muse_adapter.models.muse import MultiScaleMamba

__all__ = ["MeanPool", "MultiScaleMamba", "TemporalTransformer"]
