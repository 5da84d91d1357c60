"""Cache the tokens of a frozen backbone on disk, to train a head without running the backbone."""

from muse_adapter.data.token_cache.collate import collate_tokens
from muse_adapter.data.token_cache.read import CachedTokens
from muse_adapter.data.token_cache.write import cache_tokens, write_tokens

__all__ = ["CachedTokens", "cache_tokens", "collate_tokens", "write_tokens"]
