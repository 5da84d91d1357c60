"""A video encoder and a text tower in one space."""

from muse_adapter.video_text.model import VideoTextModel

__all__ = ["VideoTextModel"]
