"""Inputs of models: frames of video files, and cached tokens of a frozen backbone."""

from muse_adapter.data.token_cache import CachedTokens, cache_tokens, collate_tokens
from muse_adapter.data.video import read_frames

__all__ = ["CachedTokens", "cache_tokens", "collate_tokens", "read_frames"]
