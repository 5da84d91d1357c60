"""Data sets of partially relevant video retrieval, in the files that its papers share."""

from muse_adapter.data.prvr.binary import BinaryFeatures
from muse_adapter.data.prvr.cached import CachedFrames
from muse_adapter.data.prvr.captions import Caption, read_captions
from muse_adapter.data.prvr.dataset import PrvrBatch, PrvrDataset, PrvrVideo, collate_prvr
from muse_adapter.data.prvr.evaluation import evaluate_prvr
from muse_adapter.data.prvr.files import open_prvr
from muse_adapter.data.prvr.hdf5 import Hdf5Features

__all__ = [
    "BinaryFeatures",
    "CachedFrames",
    "Caption",
    "Hdf5Features",
    "PrvrBatch",
    "PrvrDataset",
    "PrvrVideo",
    "collate_prvr",
    "evaluate_prvr",
    "open_prvr",
    "read_captions",
]
