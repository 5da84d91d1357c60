"""Models on features: MUSE, CLIP4Clip's heads, EERCF, MeanMaxSim and MamFusion."""

from muse_adapter.models.baselines import MeanPool, TemporalTransformer
from muse_adapter.models.eercf import EERCF
from muse_adapter.models.eercf_checkpoint import load_eercf_state_dict
from muse_adapter.models.eercf_objective import EercfLoss, EercfScores
from muse_adapter.models.mamfusion import MamFusion
from muse_adapter.models.mamfusion_checkpoint import load_mamfusion_state_dict
from muse_adapter.models.mamfusion_objective import BatchGate, MamFusionLoss, mamfusion_loss
from muse_adapter.models.mean_max_sim import MeanMaxSim, MeanMaxSimScores
from muse_adapter.models.muse import MultiScaleMamba
from muse_adapter.models.streaming import StreamState
from muse_adapter.models.temporal_fusion import TemporalFusion
from muse_adapter.models.video_code import VideoCode

__all__ = [
    "EERCF",
    "BatchGate",
    "EercfLoss",
    "EercfScores",
    "MamFusion",
    "MamFusionLoss",
    "MeanMaxSim",
    "MeanMaxSimScores",
    "MeanPool",
    "MultiScaleMamba",
    "StreamState",
    "TemporalFusion",
    "TemporalTransformer",
    "VideoCode",
    "load_eercf_state_dict",
    "load_mamfusion_state_dict",
    "mamfusion_loss",
]
