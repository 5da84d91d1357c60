"""`read_frames`: sampled frames of a video file, and their mask."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from muse_adapter.data.video.container import UnreadableVideo, import_av
from muse_adapter.data.video.decoding import decode_all, decode_needed
from muse_adapter.data.video.sampling import Sampling, check_positive
from muse_adapter.data.video.timeline import Listing, Timeline, list_frames

# Two decode any file that stays as it is: other frames than it lists, on one thread.
MAX_PASSES = 4


def read_frames(
    path: str | os.PathLike[str],
    num_frames: int,
    *,
    size: int | None = None,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Decode a video and sample frames from it, by count, by time, or both.

    The frames are a uniform sample from the first to the last, of those shown between `start` and
    `end`. With `fps` they are a uniform sample of the frames shown at `start`, `start + 1 / fps`,
    and so on; CLIP4Clip samples with `fps=1`. Fewer than `num_frames` frames are padded with zero
    frames. Only the packets that the sampled frames need are decoded, where that gives the same
    frames.

    Damaged packets, and those before the first key frame, are left out, with one warning that
    counts them; damage in a part that no sampled frame needs is not looked for.

    Args:
        path: The video file, in any format that PyAV's FFmpeg reads.
        num_frames: T, at least 1.
        size: Resize the short side to this many pixels and crop the centre square; None keeps the
            height and width of the video.
        start: Seconds after the first frame; the frame shown then is the first to sample.
        end: Seconds after the first frame, exclusive; beyond the video it is the video's end.
        fps: Frames per second to sample from. A frame that is shown for longer is repeated.

    Returns:
        Frames (T, 3, height, width), uint8, RGB, upright, and the frame mask (T,), bool, True for
        a real frame.

    Raises:
        ImportError: PyAV is not installed, or is older than version 17.
        FileNotFoundError: The file does not exist.
        UnreadableVideo: No frame can be decoded, the video ends before `start`, or the sampled
            frames differ in size and `size` is None.
        ValueError: An argument is out of range.
    """
    sampling = Sampling(num_frames, start, end, fps)
    if size is not None:
        check_positive("size", size)
    import_av()
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such video file: {path}")

    return read_listed(path, list_frames(path), sampling, size)


def read_listed(
    path: Path, listing: Listing, sampling: Sampling, size: int | None = None
) -> tuple[Tensor, Tensor]:
    """Read frames as `read_frames`, of a video whose packets are listed already."""
    frames, num_lost = _sample(path, listing, sampling, size)
    if len({frame.shape for frame in frames}) > 1:
        sizes = " and ".join(f"{w} x {h}" for _, h, w in dict.fromkeys(f.shape for f in frames))
        raise UnreadableVideo(path, f"its frames differ in size ({sizes} pixels); pass size=")
    if num_lost:
        warnings.warn(
            f"{str(path)!r}: {_packets(num_lost)} left out, damaged or before the first key frame",
            stacklevel=3,
        )
    if listing.breaks_off:
        warnings.warn(f"{str(path)!r} breaks off before its end", stacklevel=3)

    video = torch.zeros(sampling.num_frames, *frames[0].shape, dtype=torch.uint8)
    for target, frame in zip(video.numpy(), frames, strict=False):
        target[...] = frame.numpy()  # see `picture._contiguous`
    return video, torch.arange(sampling.num_frames) < len(frames)


def _sample(
    path: Path, listing: Listing, sampling: Sampling, size: int | None
) -> tuple[list[Tensor], int]:
    """Return the sampled frames, and the number of packets that were left out."""
    timeline = listing.expected()
    positions = sampling.positions(timeline.times, timeline.duration, timeline.rounding)
    if listing.is_exact and positions:
        wanted = {timeline.stamps[position]: position for position in positions}
        needed = decode_needed(path, listing, wanted, size)
        if needed is not None:
            return [needed[position] for position in positions], listing.first_key

    threads = None
    for _ in range(MAX_PASSES):
        decoded = decode_all(path, listing, set(positions), size, threads=threads)
        if decoded.num_damaged and threads is None:
            threads = 1  # with several, PyAV drops good frames beside a damaged one
            continue
        # The decoder may give other frames than the file lists: then sample from those.
        timeline, expected = listing.timeline(decoded.stamps), positions
        positions = sampling.positions(timeline.times, timeline.duration, timeline.rounding)
        num_lost = decoded.num_damaged + listing.first_key
        if not positions:
            raise UnreadableVideo(path, _why_none(timeline, sampling, num_lost))
        if positions == expected:
            return [decoded.frames[position] for position in positions], num_lost
    raise UnreadableVideo(path, "other frames come each time it is decoded; is it being written?")


def _why_none(timeline: Timeline, sampling: Sampling, num_lost: int) -> str:
    if timeline.times:
        return f"start={sampling.start} is not before its end, at {timeline.duration:g} seconds"
    lost = f", {_packets(num_lost)} lost" if num_lost else ""
    return f"no frame could be decoded{lost}"


def _packets(number: int) -> str:
    return f"{number} packet{'s are' if number > 1 else ' is'}"
