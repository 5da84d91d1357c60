"""Captions and video files of the standard data sets of text-video retrieval.

The files, each importing only files above it:

    captions       one caption of a video, paragraphs, videos held out of the training
    files          text and JSON of files that may be missing or damaged
    plain_pickle   pickles of plain values, without running what they name
    caption_table  the rows of a CSV of captions
    data_sets      the files of each data set
    videos         video files by the names of videos
    readable       whether a video can be read, as far as its first frame tells
"""

from muse_adapter.data.annotations.caption_table import read_caption_table
from muse_adapter.data.annotations.captions import VideoCaption, hold_out
from muse_adapter.data.annotations.data_sets import DATA_SETS, read_annotations
from muse_adapter.data.annotations.readable import why_unreadable
from muse_adapter.data.annotations.videos import find_videos

__all__ = [
    "DATA_SETS",
    "VideoCaption",
    "find_videos",
    "hold_out",
    "read_annotations",
    "read_caption_table",
    "why_unreadable",
]
