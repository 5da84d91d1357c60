"""Patch tokens of the vision backbones people have, and the video encoder on top of them."""

from muse_adapter.backbones.encoder import VideoEncoder
from muse_adapter.backbones.find import find_patch_tokens
from muse_adapter.backbones.tokens import PatchTokens

__all__ = ["PatchTokens", "VideoEncoder", "find_patch_tokens"]
