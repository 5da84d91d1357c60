"""Reading sampled frames of a video file: `read_frames` beside other libraries, on the same files.

    python -m benchmarks.decoding             # 12 of 300 frames and 64 of 7,200
    python -m benchmarks.decoding --json FILE

The files are written first, with PyAV's x264 at its default group of 250 frames. The others are
optional: torchcodec, decord and OpenCV; a missing one is named with the reason. A library is timed
only after its frames were the same, up to the conversion of colours, as those of decoding
everything.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.machine import machine, where, write_json
from benchmarks.measure import in_turn
from muse_adapter.data import read_frames
from muse_adapter.data.video import sample_positions

CASES = ((300, 12), (7200, 64))  # frames of the file, frames sampled
WIDTH, HEIGHT, RATE = 320, 240, 25
# Mean difference of levels (of 255) that other conversions of colours make; a neighbouring frame
# of these files differs by more than 10.
MAX_DIFFERENCE = 4.0

Reader = Callable[[Path, int, int], Tensor]  # file, its frames, T -> (T, 3, height, width)


def with_muse_adapter(path: Path, count: int, num_frames: int) -> Tensor:
    """Decode what the sampled frames need."""
    return read_frames(path, num_frames)[0]


def with_pyav(path: Path, count: int, num_frames: int) -> Tensor:
    """Decode everything, with as many threads as FFmpeg chooses."""
    av = importlib.import_module("av")
    wanted = set(sample_positions(count, num_frames))
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        return _channels_first(
            [
                frame.to_ndarray(format="rgb24")
                for position, frame in enumerate(container.decode(video=0))
                if position in wanted
            ]
        )


def with_torchcodec(path: Path, count: int, num_frames: int) -> Tensor:
    """Use torchcodec, which finds frames by an index of the file."""
    decoders = importlib.import_module("torchcodec.decoders")
    decoder = decoders.VideoDecoder(str(path), num_ffmpeg_threads=0)
    frames: Tensor = decoder.get_frames_at(sample_positions(count, num_frames)).data
    return frames


def with_decord(path: Path, count: int, num_frames: int) -> Tensor:
    """Use decord, which seeks to key frames."""
    reader = importlib.import_module("decord").VideoReader(str(path))
    frames = reader.get_batch(sample_positions(count, num_frames)).asnumpy()
    return torch.from_numpy(frames).permute(0, 3, 1, 2)


def with_opencv(path: Path, count: int, num_frames: int) -> Tensor:
    """Use OpenCV as CLIP4Clip does, which sets the position before each frame."""
    cv2 = importlib.import_module("cv2")
    capture = cv2.VideoCapture(str(path))
    frames = []
    for position in sample_positions(count, num_frames):
        capture.set(cv2.CAP_PROP_POS_FRAMES, position)
        _, frame = capture.read()
        frames.append(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB))
    capture.release()
    return _channels_first(frames)


# Reader and distribution, by name.
READERS: dict[str, tuple[Reader, Sequence[str]]] = {
    "muse-adapter": (with_muse_adapter, ("av",)),
    "PyAV, everything": (with_pyav, ("av",)),
    "torchcodec": (with_torchcodec, ("torchcodec",)),
    "decord": (with_decord, ("decord", "eva-decord")),
    "OpenCV": (with_opencv, ("opencv-python-headless", "opencv-python")),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)

    figures: dict[str, Any] = {"machine": machine(), "versions": {}, "rows": [], "not_here": {}}
    with tempfile.TemporaryDirectory() as folder:
        for count, num_frames in CASES:
            path = Path(folder) / f"{count}.mp4"
            write_file(path, count)
            figures["rows"] += measure(path, count, num_frames, options.repeats, figures)
    for name, reason in figures["not_here"].items():
        print(f"{name} is not measured: {reason}")
    print(markdown_table(figures))
    if options.json:
        write_json(options.json, figures)


def write_file(path: Path, count: int) -> None:
    """Write a video of moving coloured squares, the frames of which differ."""
    av, np = importlib.import_module("av"), importlib.import_module("numpy")
    blocks = np.random.default_rng(0).integers(0, 256, (HEIGHT // 16, WIDTH // 16, 3), np.uint8)
    picture = blocks.repeat(16, axis=0).repeat(16, axis=1)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for i in range(count):
            moved = np.roll(picture, (2 * i, 3 * i), axis=(0, 1))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(moved, format="rgb24")))
        container.mux(stream.encode())


def measure(
    path: Path, count: int, num_frames: int, repeats: int, figures: dict[str, Any]
) -> list[dict[str, Any]]:
    """Time every reader that gives the right frames.

    Args:
        path: The video file.
        count: Its frames.
        num_frames: Sampled frames T.
        repeats: Rounds.
        figures: Where versions, and reasons of what is missing or wrong, are added.

    Returns:
        A row for each reader.
    """
    expected = with_pyav(path, count, num_frames).float()
    runs: dict[str, Callable[[], Tensor]] = {}
    for name, (reader, distributions) in READERS.items():
        try:
            found = reader(path, count, num_frames).float()
        except (ImportError, OSError, RuntimeError) as error:
            figures["not_here"][name] = _without_folders(str(error).splitlines()[0])
            continue
        figures["versions"][name] = _version(distributions)
        worst = (found - expected).abs().mean(dim=(1, 2, 3)).max().item()
        if worst > MAX_DIFFERENCE:
            figures["not_here"][f"{name}, {num_frames} of {count}"] = (
                f"other frames: they differ by {worst:.1f} levels"
            )
            continue
        runs[name] = functools.partial(reader, path, count, num_frames)
    return [
        {
            "reader": name,
            "frames": count,
            "sampled": num_frames,
            "seconds": [timing.low, timing.median, timing.high],
            "busy": timing.busy,
        }
        for name, timing in in_turn(runs, repeats).items()
    ]


def markdown_table(figures: dict[str, Any]) -> str:
    """Write sampled frames a second, a column for each case."""
    cases = list(dict.fromkeys((row["sampled"], row["frames"]) for row in figures["rows"]))
    names = list(dict.fromkeys(row["reader"] for row in figures["rows"]))
    cells = {(row["reader"], row["sampled"], row["frames"]): row for row in figures["rows"]}
    lines = [
        f"{where(figures['machine'])}: sampled frames a second, medians of alternatives in turn.",
        "",
        "| reader | version of its library |" + "".join(f" {t} of {n:,} |" for t, n in cases),
        "|---|---|" + "---|" * len(cases),
    ]
    for name in names:
        line = f"| {name} | {figures['versions'][name]} |"
        for sampled, frames in cases:
            row = cells.get((name, sampled, frames))
            busy = ", busy machine" if row and row["busy"] else ""
            line += f" {sampled / row['seconds'][1]:,.0f}{busy} |" if row else " |"
        lines.append(line)
    missing = [f"{name}: {reason}." for name, reason in figures["not_here"].items()]
    return "\n".join(lines + (["", f"Not measured: {' '.join(missing)}"] if missing else []))


def _without_folders(reason: str) -> str:
    """Leave out where this machine keeps its libraries."""
    return re.sub(r"/\S*/", "", reason)


def _channels_first(frames: list[Any]) -> Tensor:
    return torch.stack([torch.from_numpy(frame) for frame in frames]).permute(0, 3, 1, 2)


def _version(distributions: Sequence[str]) -> str:
    for distribution in distributions:
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown"


if __name__ == "__main__":
    main()
