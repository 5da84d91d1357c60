"""Inputs of models: frames of video files, cached tokens, data sets of videos and of features."""

from muse_adapter.data.annotations import VideoCaption, find_videos, hold_out, read_annotations
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
    "VideoCaption",
    "cache_tokens",
    "collate_prvr",
    "collate_tokens",
    "evaluate_prvr",
    "find_videos",
    "hold_out",
    "open_prvr",
    "read_annotations",
    "read_captions",
    "read_frames",
]
