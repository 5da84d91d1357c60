"""Models on token features: the multi-scale Mamba head (MUSE), CLIP4Clip's heads, and EERCF."""

from muse_adapter.models.baselines import MeanPool, TemporalTransformer
from muse_adapter.models.eercf import EERCF, load_eercf_state_dict
from muse_adapter.models.eercf_objective import EercfLoss, EercfScores
from muse_adapter.models.muse import MultiScaleMamba

__all__ = [
    "EERCF",
    "EercfLoss",
    "EercfScores",
    "MeanPool",
    "MultiScaleMamba",
    "TemporalTransformer",
    "load_eercf_state_dict",
]
