"""The synthetic corpus: scenes rendered to mp4 files, and a CSV of captions for each split."""

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

from examples.quickstart.captions import SPLITS, Clip, read_captions
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

    split: str
    index: int
    scenes: tuple[Scene, Scene]
    seed: tuple[int, ...]

    def clips(self, folder: Path) -> tuple[Clip, Clip]:
        ids = [f"{self.split}-{self.index:04d}{letter}" for letter in "ab"]
        # Files of another seed or version may lie in the same folder: the content names the file.
        digest = hashlib.sha256(repr((VERSION, self.scenes, self.seed)).encode()).hexdigest()[:8]
        paths = [folder / self.split / f"{id}-{digest}.mp4" for id in ids]
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

    Every split consists of pairs: a clip, and the same frames in reverse order with the caption
    turned. Splits share no caption nor meaning. In test and validation no two captions mean the
    same; in training a caption may come again, with another clip. The test split begins with the
    clip of `scenes.QUERY`.

    Args:
        folder: Where the files go: `train/*.mp4`, `train.csv` and so on. An interrupted
            rendering goes on where it stopped.
        seed: Equal seeds and sizes give equal clips.
        train: Number of training clips, even.
        validation: Number of validation clips, even.
        test: Number of test clips, even.
        progress: Whether to show a progress bar.

    Returns:
        The clips of "train", "validation" and "test".

    Raises:
        ValueError: A size is odd or below 2.
        ImportError: PyAV is not installed.
        OSError: The folder cannot be written to.
    """
    av = import_av()
    folder = Path(folder)
    pairs = _sample_splits(seed, {"test": test, "validation": validation, "train": train})
    for split in pairs:
        ensure_folder(folder / split)

    missing = [
        pair
        for pairs_of_split in pairs.values()
        for pair in pairs_of_split
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

    splits = {}
    for split in SPLITS:
        clips = [clip for pair in pairs[split] for clip in pair.clips(folder)]
        _write_captions(folder / f"{split}.csv", clips, folder)
        splits[split] = read_captions(folder / f"{split}.csv", folder)
    return splits


def encode(av: ModuleType, frames: np.ndarray) -> bytes:
    """Encode frames as an mp4 file.

    Every frame is coded by itself and with the same quantiser, so a frame decodes to the same
    pixels wherever it stands: a clip and its reversal differ in nothing but the order.

    Args:
        av: PyAV.
        frames: (frames, height, width, 3), uint8, RGB; sides even.

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


def import_av() -> ModuleType:
    """Import PyAV, or say how to install it."""
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


def _sample_splits(seed: int, sizes: dict[str, int]) -> dict[str, list[_Pair]]:
    for split, size in sizes.items():
        if size < 2 or size % 2:
            raise ValueError(f"{split} must be an even number of at least 2 clips, got {size}")
    query = parse_caption(QUERY)
    taken: set[Meaning] = set()
    splits = {}
    for number, (split, size) in enumerate(sizes.items()):
        rng = np.random.default_rng([seed, number])
        scenes = sample_pairs(
            size // 2,
            rng,
            taken,
            query if split == "test" else None,
            repeat=split == "train",
        )
        splits[split] = [
            _Pair(split, index, pair, (seed, number, index)) for index, pair in enumerate(scenes)
        ]
    return splits


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
