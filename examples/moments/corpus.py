"""The synthetic corpus: long videos rendered to mp4 files, and the list of their moments."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from examples.moments.moments import LongVideo
from examples.quickstart.corpus import FRAMES_PER_SECOND, encode, import_av
from examples.quickstart.drawing import draw_scene
from examples.quickstart.files import ensure_folder, write_bytes, write_json
from examples.quickstart.scenes import OPPOSITE, TWO_STEPS, Scene
from muse_adapter.data.video import read_frames

VERSION = 1  # raise it when the drawing changes, so that old files are not taken for new ones
MAX_PROCESSES = 4
CHUNK = 4  # videos that a process takes at once


def path_of(video: LongVideo, folder: Path) -> Path:
    """Return the file of a video; its content names it, so that no other is taken for it."""
    digest = hashlib.sha256(repr((VERSION, video)).encode()).hexdigest()[:8]
    return folder / f"{video.id}-{digest}.mp4"


class Frames:
    """Renders what is missing of a corpus and reads its frames, in other processes.

    They begin at once, with all splits, one after the other. Each split is waited for when it is
    asked for: what is done with one goes on beside the work on the next. To be used in a `with`
    statement.

    Args:
        splits: The videos of each split, by its name.
        folder: Gets the mp4 files, and `NAME.json`, the list of moments, for each split.
        size: Side of the frames in pixels.
        wanted: Splits of which frames are wanted; the others are only rendered.
        progress: Whether to show progress bars.

    Raises:
        ImportError: PyAV is not installed.
        OSError: The folder cannot be written to.
    """

    def __init__(
        self,
        splits: Mapping[str, Sequence[LongVideo]],
        folder: Path,
        *,
        size: int,
        wanted: Collection[str],
        progress: bool = True,
    ) -> None:
        import_av()
        ensure_folder(folder)
        self._pool = ProcessPoolExecutor(
            min(MAX_PROCESSES, os.cpu_count() or 1),
            # A forked child would deadlock on the threads of torch.
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_start_process,
        )
        self._progress = progress
        self._videos = {
            name: [
                video for video in videos if name in wanted or not path_of(video, folder).exists()
            ]
            for name, videos in splits.items()
        }
        self._frames = {
            name: self._pool.map(
                partial(_make, folder, size if name in wanted else None), videos, chunksize=CHUNK
            )
            for name, videos in self._videos.items()
        }
        for name, videos in splits.items():
            listed = [_description(video, folder) for video in videos]
            write_json(folder / f"{name}.json", listed)

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def wait(self, name: str) -> list[Tensor]:
        """Wait for a split, once.

        Returns:
            For each video its frames (T, 3, size, size), uint8; nothing where none are wanted.

        Raises:
            OSError: A file cannot be written or read.
        """
        videos = self._videos[name]
        bar = tqdm(
            self._frames.pop(name),
            total=len(videos),
            desc=f"render {name}",
            unit="video",
            disable=not self._progress or not videos,
        )
        return [torch.from_numpy(frames) for frames in bar if frames is not None]


def draw(video: LongVideo) -> np.ndarray:
    """Draw a video: (frames, height, width, 3), uint8, RGB."""
    parts = []
    for number, (moment, length, cut) in enumerate(
        zip(video.moments, video.lengths, video.cuts, strict=True)
    ):
        seed = (*video.seed, number)
        motion = _motion(np.random.default_rng((*seed, 1)))
        # Of one seed, two scenes differ in the small thing alone.
        pictures = [
            draw_scene(
                Scene(thing, motion, moment.relation, moment.large),
                np.random.default_rng(seed),
                length,
            )
            for thing in moment.small
        ]
        parts += [pictures[0][:cut], pictures[-1][cut:]]
    return np.concatenate(parts)


def _motion(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw how the small thing moves, which no sentence says."""
    motions = [*((direction,) for direction in OPPOSITE), *TWO_STEPS]
    return motions[int(rng.integers(len(motions)))]


def _start_process() -> None:
    """Leave interrupts and the first claim on processors to the process that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(os, "nice"):
        os.nice(10)
    torch.set_num_threads(1)


def _make(folder: Path, size: int | None, video: LongVideo) -> np.ndarray | None:
    """Render a video if it is missing, and read its frames if they have a size."""
    path = path_of(video, folder)
    if not path.exists():
        write_bytes(path, encode(import_av(), draw(video)))
    if size is None:
        return None
    frames, mask = read_frames(path, video.num_frames, size=size)
    return frames[mask].numpy()


def _description(video: LongVideo, folder: Path) -> dict[str, object]:
    moments = [
        {
            "sentence": moment.sentence,
            "start": first / FRAMES_PER_SECOND,
            "end": (last + 1) / FRAMES_PER_SECOND,
        }
        for moment, (first, last) in zip(video.moments, video.spans, strict=True)
    ]
    return {"video": path_of(video, folder).name, "twin": video.twin, "moments": moments}
