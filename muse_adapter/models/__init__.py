"""Models on token features: the multi-scale Mamba head (MUSE)."""

from muse_adapter.models.muse import MultiScaleMamba

__all__ = ["MultiScaleMamba"]
