"""Whether a video can be read, as far as its first frame tells."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from muse_adapter.data.video.container import UnreadableVideo, import_av, open_video
from muse_adapter.data.video.picture import to_tensor


def why_unreadable(path: Path | str) -> str | None:
    """Say why no frame of a video can be read.

    The file is opened and decoded up to its first frame, which takes milliseconds where there is
    one; what is damaged behind it is not looked for.

    Args:
        path: The video file.

    Returns:
        The reason, with the path; None: a frame can be read.

    Raises:
        ImportError: PyAV is not installed, or is too old.
    """
    av = import_av()
    path = Path(path)
    try:
        with open_video(path) as (container, stream):
            frame = _first_frame(container, stream)
            if frame is None:
                raise UnreadableVideo(path, "no frame could be decoded")
            try:
                to_tensor(frame, None)
            except av.FFmpegError as error:
                raise UnreadableVideo(path, f"its pixels cannot be converted: {error}") from error
    except UnreadableVideo as error:
        return str(error)
    return None


def _first_frame(container: Any, stream: Any) -> Any:
    """Decode until a frame comes, leaving out damaged packets as `read_frames` does."""
    av = import_av()
    for packet in _packets(container, stream):
        with contextlib.suppress(av.FFmpegError):
            for frame in stream.codec_context.decode(packet):
                return frame
    return None


def _packets(container: Any, stream: Any) -> Iterator[Any]:
    """Read packets as far as the file can be read, then None: what the decoder holds back."""
    av = import_av()
    with contextlib.suppress(av.FFmpegError):
        yield from (packet for packet in container.demux(stream) if packet.size)
    yield None
