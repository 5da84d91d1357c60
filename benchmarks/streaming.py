"""A head on a video that comes in chunks, beside the same head on the whole video.

    python -m benchmarks.streaming             # a minute or two
    python -m benchmarks.streaming --json FILE

Frames a second and peak memory over the length of the video, in chunks of 1, 8 and 64 frames; and
the peak of a long stream after its first frames and at its end. A cutting is timed only after its
frames were those of the whole video.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.correctness import require_agreement
from benchmarks.isolated import isolated
from benchmarks.machine import machine, where, write_json
from benchmarks.measure import MemoryMeter, in_turn
from muse_adapter import MultiScaleMamba, RunningMean

LENGTHS, CHUNKS = (16, 64, 128), (1, 8, 64)
DIM, TOKENS = 128, 50  # of a frame: a class token and 7x7 patches
# Chunks agree to 2e-7; a state that is lost makes an error of 1e-2.
BOUND = 1e-5
# A long stream, through a head so small that it takes less than a minute.
STREAM = {"frames": 100_000, "after": 1_000, "dim": 16, "scales": (0.5,)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its table.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=LENGTHS, help="of a video")
    parser.add_argument("--chunks", type=int, nargs="+", default=CHUNKS, help="frames of a chunk")
    parser.add_argument("--dim", type=int, default=DIM, help="width")
    parser.add_argument("--stream", type=int, default=STREAM["frames"], help="frames of the stream")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)

    figures: dict[str, Any] = {"machine": machine(), "dim": options.dim, "rows": []}
    for frames in options.frames:
        figures["rows"] += measure(frames, options.chunks, options.dim, options.repeats)
    stream = {**STREAM, "frames": options.stream}
    first, last = isolated(functools.partial(peaks, **stream))
    figures["stream"] = {**stream, "first_bytes": first, "last_bytes": last}
    print(markdown_table(figures))
    if options.json:
        write_json(options.json, figures)


@torch.no_grad()
def make_head(dim: int, **fields: Any) -> MultiScaleMamba:
    """Make a head that can stream, in which frames further back count: at its start they do not."""
    torch.manual_seed(0)
    head = MultiScaleMamba(dim=dim, mixer="mamba", aggregation="frame_wise", **fields).eval()
    for name, parameter in head.layers.named_parameters():
        if name.endswith(("x_proj.weight", "out_proj.weight", "fc.weight")):
            parameter.normal_(std=2 * dim**-0.5)
    return head


@torch.no_grad()
def run(head: MultiScaleMamba, tokens: Tensor, chunk: int | None) -> Tensor:
    """Fuse the frames of videos (B, T, N, C) in chunks; None: at once."""
    if chunk is None:
        return head.forward_features(tokens)
    state, parts = None, []
    for part in tokens.split(chunk, 1):
        frames, state = head.forward_chunk(part, state)
        parts.append(frames)
    return torch.cat(parts, 1)


def measure(frames: int, chunks: Sequence[int], dim: int, repeats: int) -> list[dict[str, Any]]:
    """Time the whole video and every cutting of it, and take their peaks of memory.

    Args:
        frames: T.
        chunks: Frames of a chunk; those longer than the video are left out.
        dim: Width D.
        repeats: Rounds.

    Returns:
        A row for each; its `chunk` is None for the whole video.
    """
    head, tokens = make_head(dim), torch.randn(1, frames, TOKENS, dim)
    expected = {"frames": run(head, tokens, None)}
    ways: dict[int | None, Callable[[], Tensor]] = {}
    for chunk in (None, *(chunk for chunk in chunks if chunk <= frames)):
        got = {"frames": run(head, tokens, chunk)}
        require_agreement(got, expected, f"chunks of {chunk} of {frames} frames", BOUND)
        ways[chunk] = functools.partial(run, head, tokens, chunk)
    timings = in_turn({str(chunk): way for chunk, way in ways.items()}, repeats)
    return [
        {
            "frames": frames,
            "chunk": chunk,
            "seconds": [timing.low, timing.median, timing.high],
            "busy": timing.busy,
            "peak_bytes": isolated(added_memory, frames, chunk, dim, preloaded=True),
        }
        for chunk, timing in zip(ways, timings.values(), strict=True)
    ]


def added_memory(frames: int, chunk: int | None, dim: int) -> int:
    """Return the peak of a run above weights, tokens and libraries, in bytes."""
    head, tokens = make_head(dim), torch.randn(1, frames, TOKENS, dim)
    run(make_head(16), tokens[:, :1, :, :16].contiguous(), 1)  # loads the kernels
    meter = MemoryMeter()
    run(head, tokens, chunk)
    return meter.added()


@torch.no_grad()
def peaks(frames: int, after: int, dim: int, chunk: int = 100, **fields: Any) -> tuple[int, int]:
    """Stream a long video and its embedding, in a process that has done nothing else.

    Args:
        frames: T, a multiple of `chunk`.
        after: Frames after which the first peak is taken, likewise.
        dim: Width D.
        chunk: Frames of a chunk.
        **fields: Other fields of the head's config.

    Returns:
        Bytes of the process's peak after the first frames, and after all.
    """
    head, mean, state, first = make_head(dim, **fields), RunningMean(), None, 0
    for seen in range(chunk, frames + 1, chunk):
        part, state = head.forward_chunk(torch.randn(1, chunk, TOKENS, dim), state)
        mean.update(part)
        if seen == after:
            first = MemoryMeter().peak()
    assert bool(mean.embedding.isfinite().all())
    return first, MemoryMeter().peak()


def markdown_table(figures: dict[str, Any]) -> str:
    """Write frames a second and peak memory, a line for each length."""
    chunks = list(dict.fromkeys(row["chunk"] for row in figures["rows"]))
    titles = ["whole" if chunk is None else f"chunks of {chunk}" for chunk in chunks]
    lines = [
        f"{where(figures['machine'])}; width {figures['dim']}, depth 4, 7x7 patches a frame, the "
        "default scales, one video, inference. Frames a second are medians of alternatives in "
        "turn; MiB are the resident peak of a run in a fresh process above weights, tokens and "
        "libraries.",
        "",
        f"| frames | {' | '.join(f'{t}, frames/s' for t in titles)} | "
        f"{' | '.join(f'{t}, MiB' for t in titles)} |",
        "|---" * (2 * len(titles) + 1) + "|",
    ]
    cells = {(row["frames"], row["chunk"]): row for row in figures["rows"]}
    for frames in dict.fromkeys(row["frames"] for row in figures["rows"]):
        rows = [cells.get((frames, chunk)) for chunk in chunks]
        speeds = [
            f"{frames / row['seconds'][1]:,.0f}{', busy machine' if row['busy'] else ''}"
            if row
            else ""
            for row in rows
        ]
        memory = [f"{row['peak_bytes'] / 2**20:,.1f}" if row else "" for row in rows]
        lines.append(f"| {frames:,} | {' | '.join([*speeds, *memory])} |")
    stream = figures["stream"]
    first, last = (stream[key] / 2**20 for key in ("first_bytes", "last_bytes"))
    lines += [
        "",
        f"A stream of {stream['frames']:,} frames (width {stream['dim']}, depth 4, scales "
        f"{stream['scales']}): the resident peak of its process was {first:,.1f} MiB after "
        f"{stream['after']:,} frames and {last:,.1f} MiB at the end.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
