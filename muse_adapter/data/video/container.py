"""A video file opened with PyAV, or the reason why it cannot be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

MIN_PYAV = 17  # older ones convert BT.709 as BT.601
# sentence-transformers knows the first six; the files of ActivityNet and VATEX have others too.
VIDEO_SUFFIXES = (
    *(".mp4", ".avi", ".mov", ".wmv", ".flv", ".mkv"),
    *(".webm", ".m4v", ".mpg", ".mpeg", ".ts", ".3gp", ".ogv"),
)


class UnreadableVideo(ValueError):
    """A file from which no frame can be read; the message names the file and the reason."""

    def __init__(self, path: str | os.PathLike[str], reason: object) -> None:
        super().__init__(f"cannot read {os.fspath(path)}: {reason}")
        self._arguments = (path, reason)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle, for the worker processes of data loaders."""
        return type(self), self._arguments


def import_av() -> ModuleType:
    """Import PyAV.

    Raises:
        ImportError: It is missing or too old.
    """
    try:
        import av
    except ImportError as error:
        raise ImportError("reading videos needs PyAV: pip install 'muse-adapter[video]'") from error
    if int(av.__version__.split(".")[0]) < MIN_PYAV:
        raise ImportError(
            f"reading videos needs PyAV {MIN_PYAV} or newer, since older ones give wrong colours; "
            f"found {av.__version__}: pip install --upgrade 'muse-adapter[video]'"
        )
    return av


@contextmanager
def open_video(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file as a context: its container, and the video stream to read.

    That is the stream which FFmpeg prefers, if it has a decoder, otherwise the first that has one.
    Cover art is not a video.

    Raises:
        UnreadableVideo: The file cannot be opened, or holds no video that can be decoded.
    """
    av = import_av()
    if path.is_fifo():  # FFmpeg would wait for its writer for ever
        raise UnreadableVideo(path, "it is a named pipe")
    try:
        # Text of damaged files is replaced, not refused: it is not needed.
        # An absolute path: FFmpeg takes what stands before a colon for a protocol.
        container = av.open(str(path.absolute()), metadata_errors="replace")
    except (av.FFmpegError, OSError) as error:
        reason = error.strerror or error  # in words: with its number and the path it says less
        if isinstance(error, av.InvalidDataError):
            reason = f"it is no video, or its header is damaged ({reason})"
        raise UnreadableVideo(path, reason) from error
    with container:
        cover_art = av.stream.Disposition.attached_pic
        videos = [s for s in container.streams.video if not s.disposition & cover_art]
        if not videos:
            only = " but cover art" if container.streams.video else ""
            raise UnreadableVideo(path, f"it has no video stream{only}")
        decodable = [stream for stream in videos if stream.codec_context is not None]
        if not decodable:
            raise UnreadableVideo(path, "PyAV's FFmpeg has no decoder for its video stream")
        best = container.streams.best("video")
        yield container, best if best in decodable else decodable[0]
