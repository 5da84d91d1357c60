"""The synthetic corpus: long videos rendered to mp4 files, and the list of their moments."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from torch import Tensor
from tqdm import tqdm

from examples.moments.moments import LongVideo
from examples.quickstart.corpus import FRAMES_PER_SECOND, encode, import_av
from examples.quickstart.drawing import draw_scene
from examples.quickstart.files import ensure_folder, write_bytes, write_json
from examples.quickstart.scenes import OPPOSITE, TWO_STEPS, Scene
from muse_adapter.data.video import read_frames

VERSION = 1  # raise it when the drawing changes, so that old files are not taken for new ones


def path_of(video: LongVideo, folder: Path) -> Path:
    """Return the file of a video; its content names it, so that no other is taken for it."""
    digest = hashlib.sha256(repr((VERSION, video)).encode()).hexdigest()[:8]
    return folder / f"{video.id}-{digest}.mp4"


def render(videos: Sequence[LongVideo], folder: Path, *, name: str, progress: bool = True) -> None:
    """Render the videos of a split, or what is missing of them, and list their moments.

    Args:
        videos: The videos.
        folder: Gets the mp4 files and `NAME.json`.
        name: Of the split.
        progress: Whether to show a progress bar.

    Raises:
        ImportError: PyAV is not installed.
        OSError: The folder cannot be written to.
    """
    av = import_av()
    ensure_folder(folder)
    missing = [video for video in videos if not path_of(video, folder).exists()]
    bar = tqdm(
        total=len(missing),
        desc=f"render {name}",
        unit="video",
        disable=not progress or not missing,
    )
    # Threads, not processes: nothing has to be importable anew in a caller's script.
    with ThreadPoolExecutor(2) as pool, bar:
        try:
            for _ in pool.map(partial(_render, av, folder), missing):
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    write_json(folder / f"{name}.json", [_description(video, folder) for video in videos])


def decode(
    videos: Sequence[LongVideo], folder: Path, *, size: int, progress: bool = True
) -> list[Tensor]:
    """Read all frames of rendered videos.

    Args:
        videos: The videos.
        folder: Where their files are.
        size: Side of the frames in pixels.
        progress: Whether to show a progress bar.

    Returns:
        For each video its frames (T, 3, size, size), uint8.
    """

    def read(video: LongVideo) -> Tensor:
        frames, mask = read_frames(path_of(video, folder), video.num_frames, size=size)
        return frames[mask]

    bar = tqdm(total=len(videos), desc="decode", unit="video", disable=not progress)
    frames = []
    with ThreadPoolExecutor(2) as pool, bar:
        try:
            for video in pool.map(read, videos):
                frames.append(video)
                bar.update()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return frames


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


def _render(av: ModuleType, folder: Path, video: LongVideo) -> None:
    write_bytes(path_of(video, folder), encode(av, draw(video)))


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
