"""Tokens of a frozen backbone on disk, so that a head trains without running the backbone again."""

from muse_adapter.data.token_cache.read import CachedTokens
from muse_adapter.data.token_cache.write import cache_tokens

__all__ = ["CachedTokens", "cache_tokens"]
