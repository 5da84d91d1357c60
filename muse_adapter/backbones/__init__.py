"""Patch tokens of common vision backbones, recognised by duck typing."""

from muse_adapter.backbones.find import find_patch_tokens
from muse_adapter.backbones.tokens import PatchTokens

__all__ = ["PatchTokens", "find_patch_tokens"]
