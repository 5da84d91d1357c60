"""A head in onnxruntime, beside the same head in torch, on the CPU.

    python -m benchmarks.onnx                  # a minute or two
    python -m benchmarks.onnx --json FILE
    python -m benchmarks.onnx --clip           # only an export of CLIP ViT-B/32 with a head

The file is timed only after its embeddings were those of torch. Videos go into onnxruntime all at
once, so that each operation is divided among threads, and each alone in a thread of Python, on a
session of one thread.
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.correctness import require_agreement
from benchmarks.machine import machine, where, write_json
from benchmarks.measure import in_turn
from muse_adapter import MultiScaleMamba, VideoEncoder
from muse_adapter.onnx import export
from muse_adapter.ops import use_backend

FRAMES, TOKENS, DIM = 12, 50, 512  # a class token and 7x7 patches
BACKENDS = "numba", "torch"
RUNTIME = "onnxruntime"
PER_THREAD = "onnxruntime, one thread per video"
RUNTIMES = RUNTIME, PER_THREAD

Feeds = dict[str, Any]  # arrays by the names of inputs
Run = Callable[[Feeds], Any]  # to the embeddings of the videos


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=FRAMES, help="of a video")
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 4), help="videos at once")
    parser.add_argument("--dim", type=int, default=DIM, help="width")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clip", action="store_true", help="export a CLIP ViT-B/32, nothing else")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)

    import onnxruntime

    torch.manual_seed(0)
    if options.clip:
        print(export_clip())
        return
    head = MultiScaleMamba(dim=options.dim, init="release").eval()
    figures: dict[str, Any] = {
        "machine": machine() | {RUNTIME: onnxruntime.__version__},
        "frames": options.frames,
        "dim": options.dim,
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "head.onnx")
        start = time.perf_counter()
        export(head, file, torch.empty(1, 1, TOKENS, options.dim))
        figures["export_s"] = time.perf_counter() - start
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            runs = {
                RUNTIME: together(open_session(file, threads)),
                PER_THREAD: one_per_thread(open_session(file, threads=1), pool),
            }
            figures["rows"] = [
                measure(head, runs, batch, options.frames, options.repeats)
                for batch in options.batches
            ]
    print(markdown_table(figures))
    if options.json:
        write_json(options.json, figures)


def export_clip() -> str:
    """Export a video encoder of the size of CLIP ViT-B/32, with random weights.

    Returns:
        Seconds, size of the file, and the largest difference between onnxruntime and torch.
    """
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    backbone = CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=DIM))
    encoder = VideoEncoder(backbone, MultiScaleMamba(dim=DIM, init="release")).eval()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "encoder.onnx")
        start = time.perf_counter()
        difference = export(encoder, file, torch.empty(1, 1, 3, 224, 224))
        seconds = time.perf_counter() - start
        size = file.stat().st_size
    return (
        f"{where(machine())}; a VideoEncoder of CLIP ViT-B/32 with the default head: export and "
        f"comparison {seconds:,.0f} s, file {size / 1e6:,.0f} MB, difference between onnxruntime "
        f"and torch at most {difference:.1e}"
    )


def open_session(file: Path, threads: int) -> Any:
    """Open a file in onnxruntime, with threads that an operation is divided among."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(file, options)


def together(session: Any) -> Run:
    """Embed all videos in one call."""
    return lambda feeds: session.run(None, feeds)[0]


def one_per_thread(session: Any, pool: ThreadPoolExecutor) -> Run:
    """Embed each video in a call of its own, as many at once as the pool has threads."""

    def run(feeds: Feeds) -> Any:
        videos = range(len(feeds["tokens"]))
        single = [{name: value[i : i + 1] for name, value in feeds.items()} for i in videos]
        return np.concatenate(list(pool.map(together(session), single)))

    return run


@torch.no_grad()
def measure(
    head: MultiScaleMamba, runs: dict[str, Run], batch: int, frames: int, repeats: int
) -> dict[str, Any]:
    """Time all ways of embedding the same videos.

    Args:
        head: The head.
        runs: Ways to run its file.
        batch: B.
        frames: T.
        repeats: Rounds.

    Returns:
        The size, and for each way its quartiles and whether the machine was busy.
    """
    tokens = torch.randn(batch, frames, TOKENS, head.config.dim)
    mask = torch.ones(batch, frames, dtype=torch.bool)
    feeds = {"tokens": tokens.numpy(), "frame_mask": mask.numpy()}

    def in_torch(backend: str) -> Tensor:
        with use_backend(backend):
            video: Tensor = head(tokens)
            return video

    ways: dict[str, Callable[[], Any]] = {
        backend: functools.partial(in_torch, backend) for backend in BACKENDS
    }
    expected = {"the embedding": in_torch("torch")}
    for backend in BACKENDS:
        require_agreement({"the embedding": in_torch(backend)}, expected, backend)
    for way, run in runs.items():
        got = {"the embedding": torch.from_numpy(run(feeds))}
        require_agreement(got, expected, way, 1e-5)
        ways[way] = functools.partial(run, feeds)
    timings = in_turn(ways, repeats)
    return {"batch": batch} | {
        way: {"seconds": [timing.low, timing.median, timing.high], "busy": timing.busy}
        for way, timing in timings.items()
    }


def markdown_table(figures: dict[str, Any]) -> str:
    """Write a line for each batch."""
    ways = [*BACKENDS, *RUNTIMES]
    runtime = figures["machine"][RUNTIME]
    lines = [
        f"{where(figures['machine'])}, onnxruntime {runtime}; width {figures['dim']}, depth 4, "
        f"{figures['frames']} frames of 7x7 patches, the default scales, inference; medians of "
        "alternatives in turn.",
        "",
        f"| videos | {' | '.join(f'{way}, ms' for way in ways)} | faster onnxruntime / numba |",
        "|---" * (len(ways) + 2) + "|",
    ]
    for row in figures["rows"]:
        medians = [row[way]["seconds"][1] for way in ways]
        cells = [
            f"{1e3 * seconds:,.0f}{', busy machine' if row[way]['busy'] else ''}"
            for way, seconds in zip(ways, medians, strict=True)
        ]
        ratio = min(medians[len(BACKENDS) :]) / medians[0]
        lines.append(f"| {row['batch']} | {' | '.join(cells)} | {ratio:.1f} |")
    lines += ["", f"Exporting it, with the comparison, took {figures['export_s']:,.0f} s."]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
