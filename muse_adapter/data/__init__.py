"""Inputs of models: frames of video files, cached tokens, and data sets of features."""

from muse_adapter.data.prvr import (
    BinaryFeatures,
    CachedFrames,
    Caption,
    Hdf5Features,
    PrvrBatch,
    PrvrDataset,
    PrvrVideo,
    collate_prvr,
    evaluate_prvr,
    open_prvr,
    read_captions,
)
from muse_adapter.data.token_cache import CachedTokens, cache_tokens, collate_tokens
from muse_adapter.data.video import read_frames

__all__ = [
    "BinaryFeatures",
    "CachedFrames",
    "CachedTokens",
    "Caption",
    "Hdf5Features",
    "PrvrBatch",
    "PrvrDataset",
    "PrvrVideo",
    "cache_tokens",
    "collate_prvr",
    "collate_tokens",
    "evaluate_prvr",
    "open_prvr",
    "read_captions",
    "read_frames",
]
