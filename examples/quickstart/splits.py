"""Clips to tensors: one split of a corpus, decoded and kept."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from examples.quickstart.captions import Clip
from examples.quickstart.files import ensure_folder, read_tensors, write_tensors
from muse_adapter.data.video import UnreadableVideo, read_frames

LISTED = 10  # videos that a message names


@dataclass(frozen=True)
class Split:
    """Decoded clips; a video with several captions is there once.

    Attributes:
        clips: n clips, one per caption.
        video: (n,), int64, the video of each clip.
        frames: (videos, T, 3, size, size), uint8, RGB, the videos in the order of the clips.
        mask: (videos, T), bool, True for a real frame.
    """

    clips: list[Clip]
    video: Tensor
    frames: Tensor
    mask: Tensor

    @property
    def captions(self) -> list[str]:
        """The caption of each clip."""
        return [clip.caption for clip in self.clips]

    @property
    def videos(self) -> list[Clip]:
        """The first clip of each video."""
        first: dict[Path, Clip] = {}
        for clip in self.clips:
            first.setdefault(clip.path, clip)
        return list(first.values())


def load_split(
    clips: Sequence[Clip],
    *,
    num_frames: int,
    size: int,
    cache: Path | None,
    progress: bool = True,
) -> Split:
    """Decode clips, each video once, leaving out unreadable ones with a warning.

    Args:
        clips: The clips.
        num_frames: T, frames sampled from each video.
        size: Side of the square that frames are resized and cropped to.
        cache: Folder in which the decoded frames are kept, None for none. They are read from
            there if neither the settings nor the files' names, sizes and times have changed.
        progress: Whether to show a progress bar.

    Returns:
        The readable clips, decoded.

    Raises:
        ValueError: There are no clips, none can be read, or the file in the cache is damaged.
        OSError: The cache cannot be written to.
    """
    if not clips:
        raise ValueError("there are no clips to read")
    paths = list(dict.fromkeys(clip.path for clip in clips))
    if cache is None:
        decoded = _decode(paths, num_frames, size, progress)
    else:
        file = Path(cache) / f"frames-{_fingerprint(paths, num_frames, size)}.pt"
        if file.exists():
            decoded = _Decoded(**read_tensors(file, _Decoded.__annotations__))
        else:
            ensure_folder(file.parent)
            decoded = _decode(paths, num_frames, size, progress)
            write_tensors(file, vars(decoded))

    row_of = {paths[number]: row for row, number in enumerate(decoded.readable)}
    if not row_of:
        raise ValueError(f"none of {len(paths)} videos can be read:{_lines(decoded.reasons)}")
    if decoded.reasons:
        warnings.warn(
            f"{len(decoded.reasons)} of {len(paths)} videos are left out:{_lines(decoded.reasons)}",
            stacklevel=2,
        )
    kept = [clip for clip in clips if clip.path in row_of]
    video = torch.tensor([row_of[clip.path] for clip in kept])
    return Split(kept, video, decoded.frames, decoded.mask)


@dataclass(frozen=True)
class _Decoded:
    """What of some videos could be decoded.

    Attributes:
        frames: (r, T, 3, size, size), uint8, of the r readable ones.
        mask: (r, T), bool.
        readable: Number of the video, for each of the r.
        reasons: A sentence for each of the others.
    """

    frames: Tensor
    mask: Tensor
    readable: list[int]
    reasons: list[str]


def _lines(reasons: Sequence[str]) -> str:
    """Put the first reasons on a line each, and say how many more there are."""
    more = [f"and {len(reasons) - LISTED} more"] if len(reasons) > LISTED else []
    return "".join(f"\n  {reason}" for reason in [*reasons[:LISTED], *more])


def _decode(paths: Sequence[Path], num_frames: int, size: int, progress: bool) -> _Decoded:
    frames = torch.zeros(len(paths), num_frames, 3, size, size, dtype=torch.uint8)
    mask = torch.zeros(len(paths), num_frames, dtype=torch.bool)
    readable: list[int] = []
    reasons: list[str] = []

    def read(path: Path) -> tuple[Tensor, Tensor] | UnreadableVideo:
        try:
            return read_frames(path, num_frames, size=size)
        except UnreadableVideo as error:
            return error

    bar = tqdm(total=len(paths), desc="decode", unit="video", disable=not progress)
    with ThreadPoolExecutor(2) as pool, bar:
        try:
            for number, result in enumerate(pool.map(read, paths)):
                if isinstance(result, UnreadableVideo):
                    reasons.append(str(result))
                else:
                    frames[len(readable)], mask[len(readable)] = result
                    readable.append(number)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    n = len(readable)
    return _Decoded(frames[:n].clone(), mask[:n].clone(), readable, reasons)


def _fingerprint(paths: Sequence[Path], num_frames: int, size: int) -> str:
    stats = [(str(path.resolve()), path.stat()) for path in paths]
    files = [(name, stat.st_mtime_ns, stat.st_size) for name, stat in stats]
    return hashlib.sha256(json.dumps([files, num_frames, size]).encode()).hexdigest()[:16]
