"""Multi-scale Mamba video heads for text-video retrieval (MUSE), on any ViT's patch tokens."""

from muse_adapter.backbones import VideoEncoder
from muse_adapter.checkpoint import load_muse_state_dict
from muse_adapter.config import PAPER_SETTINGS, MuseConfig, TrainingSettings
from muse_adapter.metrics import retrieval_metrics
from muse_adapter.model import MultiScaleMamba
from muse_adapter.optim import param_groups
from muse_adapter.token_cache import CachedTokens, cache_tokens
from muse_adapter.version import VERSION as __version__
from muse_adapter.video_text import VideoTextModel

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
