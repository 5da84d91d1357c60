"""The synthetic corpus: scenes rendered to mp4 files, and a CSV of captions for each part."""

from __future__ import annotations

import csv
import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from tqdm import tqdm

from examples.quickstart.data import Clip, read_captions
from examples.quickstart.drawing import draw_scene
from examples.quickstart.files import ensure_folder, write_bytes
from examples.quickstart.scenes import (
    QUERY,
    Meaning,
    Scene,
    parse_caption,
    sample_pairs,
)

FRAMES_PER_SECOND = 8
VERSION = 5  # raise it when the drawing changes, so that old files are not taken for new ones


@dataclass(frozen=True)
class _Pair:
    """A scene and its reversal, with the seed from which both clips are drawn."""

    part: str
    index: int
    scenes: tuple[Scene, Scene]
    seed: tuple[int, ...]

    def clips(self, folder: Path) -> tuple[Clip, Clip]:
        ids = [f"{self.part}-{self.index:04d}{letter}" for letter in "ab"]
        # Files of another seed or version may lie in the same folder: the content names the file.
        digest = hashlib.sha256(repr((VERSION, self.scenes, self.seed)).encode()).hexdigest()[:8]
        paths = [folder / self.part / f"{id}-{digest}.mp4" for id in ids]
        captions = [scene.caption for scene in self.scenes]
        return (
            Clip(ids[0], paths[0], captions[0], reversal=ids[1]),
            Clip(ids[1], paths[1], captions[1], reversal=ids[0]),
        )


def synthetic_corpus(
    folder: Path,
    *,
    seed: int = 0,
    train: int = 2000,
    validation: int = 100,
    test: int = 200,
    progress: bool = True,
) -> dict[str, list[Clip]]:
    """Render the corpus, or what is missing of it, and list its clips.

    Every part consists of pairs: a clip, and the same frames in reverse order with the caption
    turned. Parts share no caption nor meaning. In the test and the validation part no two captions
    mean the same; in the training part a caption may come again, with another clip.
    The test part begins with the clip of ``scenes.QUERY``.

    Args:
        folder: where the files go: ``train/*.mp4``, ``train.csv`` and so on. An interrupted
            rendering goes on where it stopped.
        seed: equal seeds and sizes give equal clips.
        train: number of training clips, even.
        validation: number of validation clips, even.
        test: number of test clips, even.
        progress: whether to show a progress bar.

    Returns:
        The clips of the parts "train", "validation" and "test".

    Raises:
        ValueError: a size is odd or below 2.
        ImportError: PyAV is not installed.
        OSError: the folder cannot be written to.
    """
    av = _import_av()
    folder = Path(folder)
    pairs = _sample_parts(seed, {"test": test, "validation": validation, "train": train})
    for part in pairs:
        ensure_folder(folder / part)

    missing = [
        pair
        for pairs_of_part in pairs.values()
        for pair in pairs_of_part
        if not all(clip.path.exists() for clip in pair.clips(folder))
    ]
    # Threads, not processes: nothing has to be importable anew in a caller's script.
    with (
        ThreadPoolExecutor(2) as pool,
        tqdm(
            total=2 * len(missing), desc="render", unit="clip", disable=not progress or not missing
        ) as bar,
    ):
        try:
            for _ in pool.map(partial(_render, av, folder), missing):
                bar.update(2)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise

    parts = {}
    for part in ("train", "validation", "test"):
        clips = [clip for pair in pairs[part] for clip in pair.clips(folder)]
        _write_captions(folder / f"{part}.csv", clips, folder)
        parts[part] = read_captions(folder / f"{part}.csv", folder)
    return parts


def encode(av: ModuleType, frames: np.ndarray) -> bytes:
    """Frames as an mp4 file.

    Every frame is coded by itself and with the same quantiser, so a frame decodes to the same
    pixels wherever it stands: a clip and its reversal differ in nothing but the order.

    Args:
        av: PyAV.
        frames: ``(frames, height, width, 3)``, uint8, RGB; sides even.

    Returns:
        The content of the file.
    """
    codec, options = _encoder(av)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=FRAMES_PER_SECOND, options=options)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 1
        stream.codec_context.thread_count = 1
        for picture in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def _import_av() -> ModuleType:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "rendering videos needs PyAV: pip install 'muse-adapter[video]'"
        ) from error
    return av


def _encoder(av: ModuleType) -> tuple[str, dict[str, str]]:
    if "libx264" in av.codecs_available:
        return "libx264", {"qp": "18", "preset": "veryfast", "g": "1"}
    return "mpeg4", {"qmin": "2", "qmax": "2", "g": "1"}  # FFmpeg's own, always there


def _sample_parts(seed: int, sizes: dict[str, int]) -> dict[str, list[_Pair]]:
    for part, size in sizes.items():
        if size < 2 or size % 2:
            raise ValueError(f"{part} must be an even number of at least 2 clips, got {size}")
    query = parse_caption(QUERY)
    taken: set[Meaning] = set()
    parts = {}
    for number, (part, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, number])
        scenes = sample_pairs(
            size // 2,
            rng,
            taken,
            query if part == "test" else None,
            repeat=part == "train",
        )
        parts[part] = [
            _Pair(part, index, pair, (seed, number, index)) for index, pair in enumerate(scenes)
        ]
    return parts


def _render(av: ModuleType, folder: Path, pair: _Pair) -> None:
    frames = draw_scene(pair.scenes[0], np.random.default_rng(pair.seed))
    for clip, pictures in zip(pair.clips(folder), (frames, frames[::-1]), strict=True):
        write_bytes(clip.path, encode(av, pictures))


def _write_captions(path: Path, clips: list[Clip], folder: Path) -> None:
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["id", "video", "caption", "reversal"])
    for clip in clips:
        name = clip.path.relative_to(folder).as_posix()
        writer.writerow([clip.id, name, clip.caption, clip.reversal])
    write_bytes(path, table.getvalue().encode())
