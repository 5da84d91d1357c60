"""Models with backbones: video encoders, text towers, and both in one model."""

from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.encoders.video_text import VideoTextModel

__all__ = ["VideoEncoder", "VideoTextModel"]
