"""Frames of video files, sampled by count or by time. Needs PyAV (extra `video`).

The files, each importing only files above it:

    sampling   positions of the sampled frames
    container  a file opened with PyAV, or the reason why it cannot be
    picture    a decoded frame as an RGB tensor, upright and resized
    timeline   the packets of a file, and the order and times of their frames
    seeking    which packets have to be decoded for some frames
    decoding   packets to tensors: only the needed ones, or all
    reading    `read_frames`
"""

from muse_adapter.data.video.container import UnreadableVideo
from muse_adapter.data.video.reading import read_frames
from muse_adapter.data.video.sampling import sample_positions

__all__ = ["UnreadableVideo", "read_frames", "sample_positions"]
