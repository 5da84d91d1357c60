"""Packets to tensors: only those that some frames need, or all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from torch import Tensor

from muse_adapter.data.video.container import UnreadableVideo, import_av, open_video
from muse_adapter.data.video.picture import to_tensor
from muse_adapter.data.video.seeking import Run, needed_runs
from muse_adapter.data.video.timeline import Listing

# For smaller frames threads of the decoder cost what they gain, or more.
MIN_THREADED_PIXELS = 640 * 360
KEY_PICTURE = 1  # FFmpeg's AV_PICTURE_TYPE_I


@dataclass
class Decoded:
    """Frames of a video.

    Attributes:
        frames: The wanted ones that could be decoded, (3, height, width), by position.
        stamps: Time stamps of all frames that could be decoded, in the order of display.
        num_damaged: How many packets could not be decoded.
    """

    frames: dict[int, Tensor] = field(default_factory=dict)
    stamps: list[int | None] = field(default_factory=list)
    num_damaged: int = 0


def decode_needed(
    path: Path, listing: Listing, wanted: Mapping[int | None, int], size: int | None
) -> dict[int, Tensor] | None:
    """Decode wanted frames, and otherwise only what they refer to.

    Args:
        path: The video file.
        listing: Its packets; `is_exact`.
        wanted: Positions of the wanted frames, by time stamp.
        size: Short side, see `to_tensor`.

    Returns:
        The frames by position, the same as if all had been decoded. None if there is any doubt
        of that: a damaged packet, a key frame that is none, a frame that does not appear.
    """
    av = import_av()
    frames: dict[int, Tensor] = {}
    with open_video(path) as (container, stream):
        codec = stream.codec_context
        _set_threads(codec, threads=None)
        # Not to conceal damage by what was decoded before, which differs after a seek.
        codec.options = {"err_detect": "explode"}
        packets = enumerate(_packets(container, stream))
        try:
            for run in needed_runs(listing.packets, wanted):
                start = listing.packets[run.first].pts
                # A frame that is marked as a key frame and is none shows at the start of a run.
                is_key = run.first == listing.first_key
                for frame in _decode_run(codec, packets, run, start):
                    is_key |= frame.pts == start and frame.pict_type == KEY_PICTURE
                    if frame.is_corrupt or not is_key:
                        return None
                    if frame.pts in wanted:
                        frames[wanted[frame.pts]] = to_tensor(frame, size)
        except av.FFmpegError:
            return None
    return frames if len(frames) == len(wanted) else None


def decode_all(
    path: Path,
    listing: Listing,
    wanted: Collection[int],
    size: int | None,
    *,
    threads: int | None = None,
) -> Decoded:
    """Decode all frames, leaving out damaged packets, and keep the wanted ones.

    Args:
        path: The video file.
        listing: Its packets.
        wanted: Positions of the wanted frames among those that can be decoded.
        size: Short side, see `to_tensor`.
        threads: Threads of the decoder (None: chosen by the size of the frames).

    Raises:
        UnreadableVideo: The pixels of a wanted frame cannot be converted.
    """
    av = import_av()
    decoded = Decoded()
    with open_video(path) as (container, stream):
        codec = stream.codec_context
        _set_threads(codec, threads)
        for packet in chain(_packets(container, stream, listing.first_key), (None,)):
            try:
                pictures = codec.decode(packet)
            except av.FFmpegError:
                decoded.num_damaged += 1
                continue
            for picture in pictures:
                position = len(decoded.stamps)
                if position in wanted:
                    try:
                        decoded.frames[position] = to_tensor(picture, size)
                    except av.FFmpegError as error:
                        raise UnreadableVideo(
                            path, f"its pixels ({picture.format.name}) cannot be converted: {error}"
                        ) from error
                decoded.stamps.append(picture.pts)
    return decoded


def _packets(container: Any, stream: Any, first: int = 0) -> Iterator[Any]:
    """Read the packets of a stream from a number on, as far as the file can be read."""
    av = import_av()
    try:
        yield from islice(
            (packet for packet in container.demux(stream) if packet.size), first, None
        )
    except av.FFmpegError:
        return


def _decode_run(
    codec: Any, packets: Iterator[tuple[int, Any]], run: Run, start: int | None
) -> Iterator[Any]:
    """Decode a run, then let the decoder forget it.

    Frames shown before the key frame `start` refer to what precedes it, and none in a run refers
    to them.
    """
    for number, packet in packets:
        if number >= run.first and (start is None or packet.pts >= start):
            yield from codec.decode(packet)
        if number == run.last:
            break
    yield from codec.decode(None)
    codec.flush_buffers()


def _set_threads(codec: Any, threads: int | None) -> None:
    if threads is None and codec.width * codec.height >= MIN_THREADED_PIXELS:
        codec.thread_type = "AUTO"
    else:
        codec.thread_count = threads or 1
