"""Evaluation both ways: the head once per video, and inside the loop over pairs of batches.

    python -m benchmarks.evaluation                 # tiny data, a minute
    python -m benchmarks.evaluation --texts 1000 --videos 1000 --json FILE

The first way is what a patched CLIP4Clip does, the second the published code. Runs of the head are
counted as they happen; times are given only where both ways give the same similarities.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import in_turn, machine, write_json
from muse_adapter import MultiScaleMamba

TOKENS = 50  # class token and 7x7 patches
WAYS = {"once": "once per video", "per_pair": "per pair of batches"}


def expected_runs(texts: int, videos: int, batch: int) -> dict[str, int]:
    """How often either way runs the head."""
    once = math.ceil(videos / batch)
    return {"once": once, "per_pair": math.ceil(texts / batch) * once}


@torch.no_grad()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Evaluates random texts and videos both ways: runs of the head, seconds, their ratio."""
    torch.manual_seed(0)
    texts = F.normalize(torch.randn(options.texts, options.dim), dim=-1).split(options.batch)
    videos = torch.randn(options.videos, options.frames, TOKENS, options.dim).split(options.batch)
    head = MultiScaleMamba(dim=options.dim, init="release").eval()  # "identity" hides the mixers
    runs = {"once": 0, "per_pair": 0}

    def embed(way: str, video: Tensor) -> Tensor:
        runs[way] += 1
        return head(video)

    def once() -> Tensor:
        embeddings = torch.cat([embed("once", video) for video in videos])
        return torch.cat([text @ embeddings.T for text in texts])

    def per_pair() -> Tensor:
        rows = [torch.cat([t @ embed("per_pair", v).T for v in videos], 1) for t in texts]
        return torch.cat(rows)

    error = (once() - per_pair()).abs().max().item()
    if not error < 1e-5:
        raise SystemExit(f"the similarities differ by {error:.1e}, so no time is given")
    counted = dict(runs)
    timings = in_turn({"once": once, "per_pair": per_pair}, options.repeats)
    return {
        "size": {name: getattr(options, name) for name in ("texts", "videos", "batch", "frames")},
        "runs": counted,
        "seconds": {way: timing.median for way, timing in timings.items()},
        "spread": {way: timing.spread for way, timing in timings.items()},
        "ratio": timings["per_pair"].median / timings["once"].median,
    }


def markdown_table(figures: dict[str, Any]) -> str:
    """The table of the README, from what `--json` wrote."""
    about, row, real = figures["machine"], figures["evaluation"], expected_runs(1000, 1000, 16)
    size, runs, seconds = row["size"], row["runs"], row["seconds"]
    lines = [
        f"`{about['command']}` on {about['threads']} threads of an {about['processor']}, torch "
        f"{about['torch']}, {about['date'][:10]}; medians, both ways in turn:",
        "",
        f"| the head runs | {size['texts']:,} texts x {size['videos']:,} videos, "
        f"batches of {size['batch']} | seconds | 1,000 x 1,000, batches of 16 |",
        "|---|---|---|---|",
        *(f"| {WAYS[w]} | {runs[w]:,} | {seconds[w]:.3g} | {real[w]:,} |" for w in WAYS),
        f"| ratio | {runs['per_pair'] / runs['once']:.0f} | {row['ratio']:.1f} "
        f"| {real['per_pair'] / real['once']:.0f} |",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=64)
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--batch", type=int, default=16, help="texts, and videos, a batch")
    parser.add_argument("--frames", type=int, default=4)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    command = " ".join(["python -m benchmarks.evaluation", *sys.argv[1:]])
    figures = {"machine": {**machine(), "command": command}, "evaluation": measure(options)}
    print(markdown_table(figures), end="")
    if options.json:
        write_json(options.json, figures)


if __name__ == "__main__":
    main()
