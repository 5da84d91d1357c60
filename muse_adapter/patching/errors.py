"""The exception of the patcher."""

from __future__ import annotations


class PatchError(Exception):
    """The checkout cannot be patched as it is; the message says where, why and what to do."""
