"""Multi-scale Mamba video heads for text-video retrieval (MUSE), on any ViT's patch tokens."""

from muse_adapter.checkpoint import load_muse_state_dict
from muse_adapter.config import MuseConfig
from muse_adapter.data.token_cache import CachedTokens, cache_tokens
from muse_adapter.encoders import VideoEncoder, VideoTextModel
from muse_adapter.models import MultiScaleMamba
from muse_adapter.presets import PAPER_SETTINGS, TrainingSettings
from muse_adapter.retrieval import retrieval_metrics
from muse_adapter.training import param_groups
from muse_adapter.version import VERSION as __version__

__all__ = [
    "PAPER_SETTINGS",
    "CachedTokens",
    "MultiScaleMamba",
    "MuseConfig",
    "TrainingSettings",
    "VideoEncoder",
    "VideoTextModel",
    "__version__",
    "cache_tokens",
    "load_muse_state_dict",
    "param_groups",
    "retrieval_metrics",
]
