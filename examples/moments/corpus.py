"""The synthetic corpus: long videos rendered to mp4 files, and the list of their moments."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
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
PROCESSES = min(8, os.cpu_count() or 1)
CHUNK = 4  # videos that a process takes at once


def path_of(video: LongVideo, folder: Path) -> Path:
    """Return the file of a video; its content names it, so that no other is taken for it."""
    digest = hashlib.sha256(repr((VERSION, video)).encode()).hexdigest()[:8]
    return folder / f"{video.id}-{digest}.mp4"


def render(
    splits: Mapping[str, Sequence[LongVideo]],
    folder: Path,
    *,
    size: int,
    wanted: Collection[str],
    progress: bool = True,
) -> dict[str, list[Tensor]]:
    """Render what is missing of a corpus, and read its frames, in as many processes as threads.

    The processes import the script that calls this: it needs `if __name__ == "__main__":`. There
    are as many as torch has threads (`torch.set_num_threads`), at most `PROCESSES`.

    Args:
        splits: The videos of each split, by its name.
        folder: Gets the mp4 files, and `NAME.json`, the list of moments, for each split.
        size: Side of the frames in pixels.
        wanted: Splits of which frames are wanted; the others are only rendered.
        progress: Whether to show progress bars.

    Returns:
        For each split that is wanted and each of its videos the frames (T, 3, size, size), uint8.

    Raises:
        ImportError: PyAV is not installed.
        OSError: The folder cannot be written to.
        RuntimeError: A process was ended, for want of memory for example, or could not start, as
            in a script without `if __name__ == "__main__":`.
    """
    import_av()
    ensure_folder(folder)
    found = {}
    # A forked child would deadlock on the threads of torch.
    spawn = multiprocessing.get_context("spawn")
    processes = min(PROCESSES, torch.get_num_threads())
    with ProcessPoolExecutor(processes, spawn, _start_process) as pool:
        try:
            for name, videos in splits.items():
                read = name in wanted
                todo = [video for video in videos if read or not path_of(video, folder).exists()]
                bar = tqdm(
                    pool.map(partial(_make, folder, size if read else None), todo, chunksize=CHUNK),
                    total=len(todo),
                    desc=f"render {name}",
                    unit="video",
                    disable=not progress or not todo,
                )
                found[name] = [torch.from_numpy(frames) for frames in bar if frames is not None]
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a process that renders videos was ended or could not start: the memory may not "
                "suffice (fewer threads take less), or the script that is run has no "
                '`if __name__ == "__main__":`'
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    for name, videos in splits.items():
        write_json(folder / f"{name}.json", [_description(video, folder) for video in videos])
    return {name: frames for name, frames in found.items() if name in wanted}


def draw(video: LongVideo) -> np.ndarray:
    """Draw a video: (frames, height, width, 3), uint8, RGB."""
    parts = []
    for number, (moment, length, cut) in enumerate(
        zip(video.moments, video.lengths, video.cuts, strict=True)
    ):
        seed = (*video.seed, number)
        motion = _motion(np.random.default_rng((*seed, 1)))
        # Of one seed, two scenes differ in the small thing alone.
        pieces = [slice(cut), slice(cut, None)] if moment.ordered else [slice(None)]
        parts += [
            draw_scene(
                Scene(thing, motion, moment.relation, moment.large),
                np.random.default_rng(seed),
                length,
                piece,
            )
            for thing, piece in zip(moment.small, pieces, strict=True)
        ]
    return np.concatenate(parts)


def _motion(rng: np.random.Generator) -> tuple[str, ...]:
    """Draw how the small thing moves, which no sentence says."""
    motions = [*((direction,) for direction in OPPOSITE), *TWO_STEPS]
    return motions[int(rng.integers(len(motions)))]


def _start_process() -> None:
    """Leave interrupts to the process that waits, and a processor to each process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends; one that is killed tells nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


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
