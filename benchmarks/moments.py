"""Encoding one long video: MamFusion, its parts alone, and plain attention, over its frames.

    python -m benchmarks.moments              # 64 to 16,384 frames
    python -m benchmarks.moments --json FILE  # goes on with FILE: what was measured quietly is kept
    python -m benchmarks.moments --lengths 64 256 --limit 1

The published settings for TVR, but for `max_frames`, which is the length: with the published 512,
longer videos are averaged to 512 segments first, and cost no more than 512 frames. Whatever is
timed agreed before, on a short video, with attention by its formula over a (frames, frames) matrix.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.correctness import require_agreement
from benchmarks.heads.curves import compare, fit
from benchmarks.isolated import isolated
from benchmarks.kept_rows import other_calls
from benchmarks.machine import machine, where, write_json
from benchmarks.measure import MemoryMeter, in_turn, once
from muse_adapter import MAMFUSION_SETTINGS, MamFusion, MamFusionConfig
from muse_adapter.layers.gaussian import GaussianBlock, WindowedAttention, gaussian_window

LENGTHS = (64, 256, 1024, 2048, 4096, 8192, 16_384)
CHECKED = 300  # frames of the video by which subjects are compared with their definitions
FITTED_FROM = 1024  # frames from which growth is fitted
LONGEST_WRITTEN_OUT = 4096  # beyond it the scores of one layer take gigabytes
FIRST = "MamFusion"
WRITTEN_OUT = "MamFusion, attention written out"

Row = dict[str, Any]


class Skip(nn.Module):
    """Stands for a layer that a subject does not have."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Return x."""
        return x


class WrittenOut(WindowedAttention):
    """Windowed attention by its formula, with all scores and the whole window at once."""

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        """Apply the layer; every token is valid."""
        q, k, v = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if self.width is not None:
            size = torch.tensor([x.shape[1]])
            scores = scores * gaussian_window(size, x.shape[1], self.width, dtype=x.dtype)[:, None]
        y = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.norm(x + self.out(y))


def gaussian_alone(model: MamFusion) -> None:
    """Leave GMMFormer's blocks."""
    for branch in (model.clip_branch, model.frame_branch):
        branch.mamba = nn.ModuleList(Skip() for _ in branch.mamba)


def mamba_alone(model: MamFusion) -> None:
    """Leave Mamba."""
    for branch in (model.clip_branch, model.frame_branch):
        branch.gaussian = nn.ModuleList(Skip() for _ in branch.gaussian)


def plain_attention(model: MamFusion) -> None:
    """Leave one attention layer without a window in place of each block and its Mamba."""
    gaussian_alone(model)
    for module in model.modules():
        if isinstance(module, GaussianBlock):
            module.layers = module.layers[:1]


def written_out(model: MamFusion) -> None:
    """Compute attention by its formula."""
    for module in model.modules():
        if isinstance(module, WindowedAttention):
            module.__class__ = WrittenOut


# What is changed in a MamFusion, by subject.
SUBJECTS: dict[str, Sequence[Callable[[MamFusion], None]]] = {
    FIRST: (),
    WRITTEN_OUT: (written_out,),
    "Gaussian blocks alone (GMMFormer's)": (gaussian_alone,),
    "Mamba alone": (mamba_alone,),
    "plain attention, SDPA": (plain_attention,),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark and print its tables.

    Args:
        arguments: Of the command line (None: the process's).
    """
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--limit", type=float, default=3.0, help="seconds of a row's rounds")
    parser.add_argument("--minutes", type=float, help="after which no new row begins")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(arguments)

    figures: dict[str, Any] = {"machine": machine(), "rows": []}
    if options.json and options.json.exists():
        kept = json.loads(options.json.read_text(encoding="utf-8"))
        if kept["machine"]["code"] != figures["machine"]["code"]:
            raise SystemExit(f"{options.json} holds figures of other code: give another file")
        figures["rows"] = [row for row in kept["rows"] if not row["busy"]]
    config = MAMFUSION_SETTINGS["tvr"].config
    for name in SUBJECTS:
        check(name, config)
    start = time.perf_counter()
    done = {(row["subject"], row["frames"]) for row in figures["rows"]}
    for length in options.lengths:
        for name in SUBJECTS:
            too_long = name == WRITTEN_OUT and length > LONGEST_WRITTEN_OUT
            if (name, length) in done or too_long:
                continue
            if options.minutes is not None and time.perf_counter() - start > 60 * options.minutes:
                print(f"not measured yet: {name}, {length:,} frames")
                continue
            row = isolated(measure, name, config, length, options.limit, preloaded=True)
            print(
                f"{length:>7,} frames  {name:<36} {row['seconds'][1] * 1e3:10.1f} ms "
                f"{row['peak_bytes'] / 2**20:8.1f} MiB{'  busy machine' if row['busy'] else ''}"
            )
            figures["rows"].append({**row, "command": figures["machine"]["command"]})
            if options.json:
                write_json(options.json, figures)
    print("\n" + markdown_table(figures))


def build(name: str, config: MamFusionConfig, length: int) -> MamFusion:
    """Build a subject for videos of `length` frames, with the same weights for all subjects."""
    torch.manual_seed(0)
    model = MamFusion(dataclasses.replace(config, max_frames=length)).eval()
    for change in SUBJECTS[name]:
        change(model)
    return model


@torch.no_grad()
def check(name: str, config: MamFusionConfig, length: int = CHECKED) -> None:
    """Compare a subject with attention by its formula.

    Raises:
        SystemExit: They differ.
    """
    model, expected = build(name, config, length), build(name, config, length)
    written_out(expected)
    frames = torch.randn(1, length, config.visual_width)
    require_agreement(
        model.encode_video(frames)._asdict(), expected.encode_video(frames)._asdict(), name
    )


@torch.no_grad()
def measure(name: str, config: MamFusionConfig, length: int, limit_s: float) -> Row:
    """Encode a video, in a process that has done nothing else.

    Returns:
        The row: quartiles of the seconds, and the peak above weights, features and libraries.
    """
    model = build(name, config, length)
    frames = torch.randn(1, length, config.visual_width)
    model.encode_video(frames[:, :8])  # libraries and compiled kernels are loaded
    run = functools.partial(model.encode_video, frames)
    meter = MemoryMeter()
    timing = once(run)
    peak = meter.added()
    busy = timing.disturbed
    if timing.median <= limit_s:
        timing = in_turn({name: run}, 3, min_s=min(limit_s, 1.0), max_s=limit_s)[name]
        busy = timing.busy
    return {
        "subject": name,
        "frames": length,
        "seconds": [timing.low, timing.median, timing.high],
        "peak_bytes": peak,
        "busy": busy,
        "rounds": timing.rounds,
    }


def markdown_table(figures: dict[str, Any]) -> str:
    """Write the tables of the documents from what `--json` wrote."""
    rows = figures["rows"]
    names = [name for name in SUBJECTS if any(row["subject"] == name for row in rows)]
    lengths = sorted({row["frames"] for row in rows})
    cells = {(row["subject"], row["frames"]): row for row in rows}
    lines = [
        f"{where(figures['machine'])}: one video, published settings for TVR with `max_frames` as "
        "long as the video, inference; medians, and the peak above weights, features and "
        "libraries in a fresh process. Runs of more than some seconds are single ones.",
    ]
    for title, cell in (("ms", _milliseconds), ("MiB", _mebibytes)):
        lines += ["", f"| {title}, by frames | " + " | ".join(f"{n:,}" for n in lengths) + " |"]
        lines += ["|---|" + "---|" * len(lengths)]
        for name in names:
            found = [cells.get((name, length)) for length in lengths]
            lines.append(f"| {name} | " + " | ".join(cell(row) for row in found) + " |")
    lines += ["", f"| growth from {FITTED_FROM:,} frames | time | memory |", "|---|---|---|"]
    for name in names:
        growths = [
            fit({n: cost for n, cost in costs.items() if n >= FITTED_FROM})
            for costs in (_seconds(rows, name), _bytes(rows, name))
        ]
        shown = (f"L^{g.exponent:.2f} ± {g.error:.2f}" if g else "" for g in growths)
        lines.append(f"| {name} | " + " | ".join(shown) + " |")
    lines += ["", f"| {FIRST} against | of | {FIRST} is |", "|---|---|---|"]
    for name in names:
        for what, costs in (("time", _seconds), ("memory", _bytes)):
            met = compare(costs(rows, FIRST), costs(rows, name))
            if name != FIRST and met:
                lines.append(f"| {name} | {what} | {str(met).replace('tokens', 'frames')} |")
    lines += other_calls(figures)
    return "\n".join(lines) + "\n"


def _milliseconds(row: Row | None) -> str:
    if row is None:
        return ""
    value = row["seconds"][1] * 1e3
    return f"{value:,.{1 if value < 100 else 0}f}" + (", busy machine" if row["busy"] else "")


def _mebibytes(row: Row | None) -> str:
    return "" if row is None else f"{row['peak_bytes'] / 2**20:,.0f}"


def _seconds(rows: list[Row], name: str) -> dict[int, float]:
    """Collect the times that others did not disturb; their memory does not depend on it."""
    return {
        row["frames"]: row["seconds"][1]
        for row in rows
        if row["subject"] == name and not row["busy"]
    }


def _bytes(rows: list[Row], name: str) -> dict[int, float]:
    return {row["frames"]: row["peak_bytes"] for row in rows if row["subject"] == name}


if __name__ == "__main__":
    main()
