"""Models with backbones: video encoders, text towers, both in one model, whole data sets."""

from muse_adapter.encoders.batches import embed_texts, embed_videos
from muse_adapter.encoders.video import VideoEncoder
from muse_adapter.encoders.video_text import VideoTextModel

__all__ = ["VideoEncoder", "VideoTextModel", "embed_texts", "embed_videos"]
