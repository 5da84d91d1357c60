"""Which packets have to be decoded for some frames."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import NamedTuple

from muse_adapter.data.video.timeline import Packet

# Starting the decoder anew costs about as much as decoding this many frames.
MIN_SKIPPED = 8


class Run(NamedTuple):
    """Packets that are decoded one after the other.

    Attributes:
        first: Number of the first, a key frame.
        last: Number of the last.
    """

    first: int
    last: int


def needed_runs(packets: list[Packet], wanted: Iterable[int | None]) -> list[Run]:
    """Choose the packets to decode.

    Args:
        packets: All packets, each with a time stamp of its own.
        wanted: Time stamps of the wanted frames.

    Returns:
        Ascending runs, each from a key frame from which its wanted frames can be decoded.
    """
    number_of = {packet.pts: number for number, packet in enumerate(packets)}
    key_frames = [number for number, packet in enumerate(packets) if packet.is_key]
    runs: list[Run] = []
    for number in sorted(number_of[pts] for pts in wanted):
        first = _start(packets, key_frames, number)
        if runs and first <= runs[-1].last + MIN_SKIPPED:
            runs[-1] = Run(runs[-1].first, number)
        else:
            runs.append(Run(first, number))
    return runs


def _start(packets: list[Packet], key_frames: list[int], number: int) -> int:
    """Return the last key frame that a frame follows both in decoding and in display.

    Frames that are decoded after a key frame and shown before it (of an open group of pictures)
    also refer to what precedes it.
    """
    pts = packets[number].pts
    assert pts is not None
    for i in range(bisect_right(key_frames, number) - 1, 0, -1):
        key_pts = packets[key_frames[i]].pts
        if key_pts is not None and key_pts <= pts:
            return key_frames[i]
    return key_frames[0]
