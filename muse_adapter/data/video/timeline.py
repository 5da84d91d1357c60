"""The packets of a video file, and the order and times of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from muse_adapter.data.video.container import import_av, open_video

# Of streams that store no frame rate; the default of FFmpeg.
DEFAULT_RATE = Fraction(25)
# Codecs with packets that show no frame, which the container does not tell from the others.
HIDDEN_FRAMES = ("vp8",)


class Packet(NamedTuple):
    """A packet in the order of decoding.

    Attributes:
        pts: Time stamp of its frame, in ticks.
        is_key: Whether decoding can begin here.
        is_shown: Whether its frame is shown: an edit list may hide it.
    """

    pts: int | None
    is_key: bool
    is_shown: bool


@dataclass(frozen=True)
class Timeline:
    """The frames of a video in the order of display.

    Attributes:
        stamps: Time stamps, in ticks; None where there is none.
        times: Seconds after the first frame, ascending.
        duration: Seconds from the first frame to the end of the last.
        rounding: Seconds by which a time may be off: stamps are whole ticks (a millisecond in
            Matroska).
    """

    stamps: Sequence[int | None]
    times: Sequence[float]
    duration: float
    rounding: float = 0.0


@dataclass(frozen=True)
class Listing:
    """What a file says of its frames, without decoding them.

    Attributes:
        packets: All packets of the stream, in the order of decoding.
        is_exact: Whether each shown packet is one frame, named by its time stamp.
        tick: Seconds of a unit of the time stamps.
        frame_seconds: Duration of a frame that does not tell its own.
        last_seconds: Duration of the last frame.
        breaks_off: Whether reading ended with an error.
    """

    packets: list[Packet]
    is_exact: bool
    tick: Fraction
    frame_seconds: float
    last_seconds: float
    breaks_off: bool

    @property
    def first_key(self) -> int:
        """Number of the first packet to decode: what precedes a key frame has no reference."""
        return next((i for i, packet in enumerate(self.packets) if packet.is_key), 0)

    def expected(self) -> Timeline:
        """Return the frames that the decoder should give."""
        shown = [packet.pts for packet in self.packets[self.first_key :] if packet.is_shown]
        if self.is_exact:
            return self.timeline(sorted(pts for pts in shown if pts is not None))
        return self.timeline([None] * len(shown))

    def timeline(self, stamps: Sequence[int | None]) -> Timeline:
        """Compute times from the time stamps of frames, given in the order of display.

        Where a time stamp is missing or falls back (files joined without new time stamps), the
        frame follows the one before it.
        """
        times: list[float] = []
        origin: float | None = None
        for stamp in stamps:
            following = times[-1] + self.frame_seconds if times else 0.0
            if stamp is None:
                times.append(following)
                continue
            seconds = float(stamp * self.tick)
            if origin is None or (times and seconds - origin <= times[-1]):
                origin = seconds - following
            times.append(seconds - origin)
        # A tick that is about as long as a frame is the frame's own, and rounds nothing.
        rounding = 0.51 * float(self.tick) if 8 * self.tick <= self.frame_seconds else 0.0
        duration = times[-1] + self.last_seconds if times else 0.0
        return Timeline(stamps, times, duration, rounding)


def list_frames(path: Path) -> Listing:
    """Read all packets of a video without decoding them.

    Raises:
        UnreadableVideo: The file cannot be opened, or holds no video that can be decoded.
    """
    av = import_av()
    packets: list[Packet] = []
    decoding_stamps: list[int | None] = []
    last: tuple[int, int] | None = None  # time stamp and duration of the frame shown last
    breaks_off = False
    with open_video(path) as (container, stream):
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                packets.append(Packet(packet.pts, packet.is_keyframe, not packet.is_discard))
                decoding_stamps.append(packet.dts)
                if packet.pts is not None and not packet.is_discard:
                    last = max(last or (packet.pts, 0), (packet.pts, packet.duration or 0))
        except av.FFmpegError:
            breaks_off = True
        hides_frames = stream.codec_context.name in HIDDEN_FRAMES
        tick = Fraction(stream.time_base)
        frame_seconds = float(1 / Fraction(stream.guessed_rate or DEFAULT_RATE))
    is_exact = not (breaks_off or hides_frames) and _is_exact(packets, decoding_stamps)
    last_seconds = float(last[1] * tick) if last and last[1] > 0 else frame_seconds
    return Listing(packets, is_exact, tick, frame_seconds, last_seconds, breaks_off)


def _is_exact(packets: list[Packet], decoding_stamps: list[int | None]) -> bool:
    """Return whether the packets can be told apart, in order, and all have their references.

    What is shown before the first key frame may lack them, which only decoding shows.
    """
    stamps = [packet.pts for packet in packets if packet.pts is not None]
    decoding = [stamp for stamp in decoding_stamps if stamp is not None]
    first = next((i for i, packet in enumerate(packets) if packet.is_key), None)
    if first is None or len(stamps) < len(packets) or len(decoding) < len(packets):
        return False
    ascending = all(before < after for before, after in pairwise(decoding))
    return ascending and len(set(stamps)) == len(stamps) and min(stamps[first:]) == stamps[first]
