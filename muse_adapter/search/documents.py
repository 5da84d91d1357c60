"""Videos as documents for a model: whole or in windows, as paths or as frames."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from muse_adapter.data.video.container import UnreadableVideo
from muse_adapter.data.video.reading import read_listed
from muse_adapter.data.video.sampling import Sampling
from muse_adapter.data.video.timeline import list_frames

# Seconds by which the end of a window and that of its video may miss each other.
_TOLERANCE_S = 1e-6


class Document(NamedTuple):
    """A segment of a video, before it is embedded.

    Attributes:
        video: Path of the video, as it was given.
        span: Start and end in seconds.
        content: What `encode_document` takes: the path, or frames, see `FrameSampling`.
        is_last: Whether no other segment of the video follows.
    """

    video: str
    span: tuple[float, float]
    content: Any
    is_last: bool


class FrameSampling(NamedTuple):
    """How a model that takes frames wants them: (T, 3, height, width), uint8, RGB.

    Attributes:
        num_frames: The largest T.
        fps: Frames a second to sample from, see `read_frames`. If it is not None, documents are the
            mappings by which sentence-transformers tells it.
    """

    num_frames: int
    fps: float | None = None


class Unreadable(NamedTuple):
    """A video that cannot be read; documents of it that came before are void."""

    video: str
    reason: str


def read_documents(
    videos: Sequence[str],
    sampling: FrameSampling | None,
    window: float | None,
    stride: float | None,
    workers: int = 0,
) -> Generator[Document | Unreadable]:
    """Read videos.

    Args:
        videos: Their paths.
        sampling: How the model wants frames; None: it reads paths itself.
        window: Seconds of a segment; None: a video is one segment.
        stride: Seconds from the start of a window to that of the next; None without windows.
        workers: Processes that read; documents of different videos may then alternate.

    Yields:
        The documents of each video in order, or that it is unreadable.
    """
    reader = _Reader(videos, sampling, window, stride)
    if workers:
        yield from DataLoader(reader, batch_size=None, num_workers=workers, collate_fn=_as_it_is)
    else:
        yield from reader


def windows(duration: float, window: float, stride: float) -> list[tuple[float, float]]:
    """Cut a video into windows of equal length; the last one ends with the video.

    Args:
        duration: Seconds of the video. If it is no longer than `window`, there is one window.
        window: Seconds of a window.
        stride: Seconds from start to start; to that of the last window it may be less.

    Returns:
        Start and end of each window, in seconds.
    """
    last = duration - window
    if last <= _TOLERANCE_S:
        return [(0.0, duration)]
    starts, start = [], 0.0
    while start < last - _TOLERANCE_S:
        starts.append(start)
        start = len(starts) * stride
    return [(start, start + window) for start in starts] + [(last, duration)]


class _Reader(IterableDataset[Any]):
    """Iterate over documents; each worker of a data loader has its own videos."""

    def __init__(
        self,
        videos: Sequence[str],
        sampling: FrameSampling | None,
        window: float | None,
        stride: float | None,
    ) -> None:
        self._videos = videos
        self._sampling, self._window, self._stride = sampling, window, stride

    def __iter__(self) -> Iterator[Document | Unreadable]:
        worker = get_worker_info()
        first, step = (0, 1) if worker is None else (worker.id, worker.num_workers)
        for video in self._videos[first::step]:
            try:
                yield from self._documents(video)
            except (UnreadableVideo, OSError) as error:
                yield Unreadable(video, str(error))

    def _documents(self, video: str) -> Iterator[Document]:
        path = Path(video)
        if not path.exists():
            raise FileNotFoundError(f"no such video file: {video}")
        listing = list_frames(path)
        timeline = listing.expected()
        if not timeline.times:
            raise UnreadableVideo(path, "it has no frames")
        spans = [(0.0, timeline.duration)]
        if self._window is not None and self._stride is not None:
            spans = windows(timeline.duration, self._window, self._stride)
        for i, span in enumerate(spans):
            content: Any = video
            if self._sampling is not None:
                # Without times where there is one segment: decoding may find frames that the file
                # does not list.
                start, end = span if len(spans) > 1 else (None, None)
                num_frames, fps = self._sampling
                frames, mask = read_listed(path, listing, Sampling(num_frames, start, end, fps))
                content = frames[mask]
                if fps is not None:
                    content = {"array": content, "video_metadata": {"fps": fps}}
            yield Document(video, span, content, i == len(spans) - 1)


def _as_it_is(document: Any) -> Any:
    return document
