"""Multi-scale Mamba video heads for text-video retrieval (MUSE), on any ViT's patch tokens."""

from muse_adapter.checkpoint import load_muse_state_dict
from muse_adapter.config import MamFusionConfig, MuseConfig
from muse_adapter.data.token_cache import CachedTokens, cache_tokens
from muse_adapter.encoders import VideoEncoder, VideoTextModel
from muse_adapter.layers.interaction import (
    TextGatedInteraction,
    late_interaction,
    token_similarity,
)
from muse_adapter.layers.running_mean import RunningMean
from muse_adapter.models import (
    EERCF,
    MamFusion,
    MeanMaxSim,
    MultiScaleMamba,
    StreamState,
    VideoCode,
    load_eercf_state_dict,
    load_mamfusion_state_dict,
)
from muse_adapter.presets import (
    MAMFUSION_SETTINGS,
    PAPER_SETTINGS,
    MamFusionSettings,
    TrainingSettings,
)
from muse_adapter.retrieval import ExactRecall, TwoStageRetriever, retrieval_metrics
from muse_adapter.training import losses, param_groups
from muse_adapter.version import VERSION as __version__

__all__ = [
    "EERCF",
    "MAMFUSION_SETTINGS",
    "PAPER_SETTINGS",
    "CachedTokens",
    "ExactRecall",
    "MamFusion",
    "MamFusionConfig",
    "MamFusionSettings",
    "MeanMaxSim",
    "MultiScaleMamba",
    "MuseConfig",
    "RunningMean",
    "StreamState",
    "TextGatedInteraction",
    "TrainingSettings",
    "TwoStageRetriever",
    "VideoCode",
    "VideoEncoder",
    "VideoTextModel",
    "__version__",
    "cache_tokens",
    "late_interaction",
    "load_eercf_state_dict",
    "load_mamfusion_state_dict",
    "load_muse_state_dict",
    "losses",
    "param_groups",
    "retrieval_metrics",
    "token_similarity",
]
