"""What the head costs on this machine: against its floor and attention, each saving, peak memory.

    python -m benchmarks.head                 # the table, a few minutes on two cores
    python -m benchmarks.head --memory        # also 65,920 tokens in an isolated process
    python -m benchmarks.head --json FILE

A ratio is printed only after the alternatives agreed with each other in the same run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.correctness import require_agreement
from benchmarks.isolated import isolated
from benchmarks.machine import machine, where, write_json
from benchmarks.measure import Timing, in_turn
from benchmarks.peak_memory import training_peak
from muse_adapter import MultiScaleMamba
from muse_adapter.config import ATTENTION_HEAD_DIM
from muse_adapter.layers.block import ResidualLayer
from muse_adapter.layers.mixers import Attention, BiMamba
from muse_adapter.layers.pyramid import Conv3x3
from muse_adapter.layers.sequence import Readout
from muse_adapter.ops import selective_scan, short_convolution, use_backend

FRAMES, TOKENS, DIM, STATES = 12, 50, 512, 16
LENGTH = FRAMES * 255  # class token, 3x3, 7x7 and 14x14 of each frame

Row = dict[str, Any]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a single layer")
    parser.add_argument(
        "--grids", type=int, nargs="+", default=(7, 14), help="patches a side, for the whole head"
    )
    parser.add_argument("--dim", type=int, default=DIM)
    parser.add_argument(
        "--memory", action="store_true", help="also measure peak memory at 65,920 tokens"
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    torch.manual_seed(0)

    about = machine()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    rows: list[Row] = []
    for measure in (whole_head, pair_loop, last_layer, merged_maps, shared_projection):
        for row in measure(options):
            seconds = f"({row['slow_s']:.4f} s, {row['fast_s']:.4f} s)"
            print(f"{row['what']:<72} {row['ratio']:6.2f}x   {seconds}")
            if "floor_s" in row:
                print(f"{'':<8}{row['fast_s'] / row['floor_s']:.2f} times its floor")
            rows.append(row)
    figures: dict[str, Any] = {"machine": about, "ratios": rows}
    if options.memory:
        memory = figures["memory"] = isolated(training_peak)
        print(f"training step, {memory['tokens']} tokens: {memory['peak_gib']:.2f} GiB")
    if options.json:
        write_json(options.json, figures)


def markdown_table(figures: dict[str, Any]) -> str:
    """Write the table of the documents from what `--json` wrote."""
    memory = figures["memory"]
    lines = [
        f"{where(figures['machine'])}; medians, alternatives in turn within one run:",
        "",
        "| what | times faster |",
        "|---|---|",
        *(f"| {row['what']} | {row['ratio']:.1f} |" for row in figures["ratios"]),
        "",
        "The head takes "
        + " and ".join(
            f"{row['fast_s'] / row['floor_s']:.2f} times its floor at {row['tokens']:,} tokens"
            for row in figures["ratios"]
            if "floor_s" in row
        )
        + ": torch's time for the matrix products of its four layers, untrimmed, and for its 3x3 "
        "convolutions alone (`numba` convolves in less).",
        "",
        f"A training step over {memory['tokens']:,} tokens (64 frames of 14x14 patches, width 512, "
        f"`torch` backend, gradient checkpointing) peaks at {memory['peak_gib']:.2f} GiB.",
    ]
    return "\n".join(lines) + "\n"


def whole_head(options: argparse.Namespace) -> list[Row]:
    """Compare the head at inference with as many attention layers, and with its floor."""
    return [_whole_head(side, options) for side in options.grids]


def _whole_head(side: int, options: argparse.Namespace) -> Row:
    head = _head(options.dim)
    tokens = torch.randn(1, FRAMES, 1 + side**2, options.dim)
    sizes = (side // 2, side, 2 * side)
    length = FRAMES * (1 + sum(size**2 for size in sizes))
    x = torch.randn(1, length, options.dim)
    maps = [
        torch.randn(FRAMES, options.dim, size, size).to(memory_format=torch.channels_last)
        for size in sizes
    ]
    attention = AttentionLayers(options.dim, len(head.layers))
    with torch.no_grad():
        with use_backend("torch"):
            expected = head(tokens)
        require_agreement({"the embedding": head(tokens)}, {"the embedding": expected}, "the head")
        timings = in_turn(
            {
                "head": lambda: head(tokens),
                "floor": lambda: floor(head, x, maps),
                "attention": lambda: attention(x),
            },
            options.repeats,
        )
    what = f"inference, {length:,} tokens: head against {len(head.layers)} attention layers"
    row = _row(what, timings, slow="attention", fast="head")
    return row | {"tokens": length, "floor_s": timings["floor"].median}


class AttentionLayers(nn.Module):
    """What stands against the head: attention and its projections, nothing else."""

    def __init__(self, dim: int, depth: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Attention(dim, head_dim=ATTENTION_HEAD_DIM) for _ in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply all layers, (B, L, D) -> (B, L, D)."""
        for layer in self.layers:
            x = layer(x)
        return x


def floor(head: MultiScaleMamba, x: Tensor, maps: list[Tensor]) -> None:
    """Run the head's large matrix products alone, by torch.

    Of each layer, on all tokens: the input projection, both x and dt projections, and one merged
    output product; of the pyramid, the 3x3 convolutions.
    """
    for layer in head.layers:
        assert isinstance(layer, ResidualLayer) and isinstance(layer.mixer, BiMamba)
        mixer = layer.mixer
        inner = F.linear(x, mixer.in_proj.weight)[..., : x.shape[-1]]
        for x_proj, dt_proj in (
            (mixer.x_proj, mixer.dt_proj),
            (mixer.x_proj_b, mixer.dt_proj_b),
        ):
            F.linear(x_proj(inner)[..., : mixer.dt_rank], dt_proj.weight)
        F.linear(inner, mixer.out_proj.weight)
    for stage, level in zip(head.pyramid.stages, maps, strict=True):
        assert isinstance(stage, nn.Sequential)
        convolution = stage[-2]
        assert isinstance(convolution, Conv3x3)
        F.conv2d(level, convolution.weight, convolution.bias, padding=1)


def pair_loop(options: argparse.Namespace) -> list[Row]:
    """Compare evaluation once per video batch with once per pair of text and video batch."""
    head = _head(options.dim)
    text_batches, video_batches = 4, [torch.randn(2, 2, TOKENS, options.dim) for _ in range(4)]
    texts = [F.normalize(torch.randn(2, options.dim), dim=-1) for _ in range(text_batches)]

    def pairs() -> Tensor:
        rows = [torch.cat([text @ head(video).T for video in video_batches], 1) for text in texts]
        return torch.cat(rows)

    def once() -> Tensor:
        videos = torch.cat([head(video) for video in video_batches])
        return torch.cat([text @ videos.T for text in texts])

    batches = f"{text_batches} x {len(video_batches)} batches"
    what = f"evaluation, {batches}: once per video against once per pair"
    return [_compare(what, pairs, once, options)]


def last_layer(options: argparse.Namespace) -> list[Row]:
    """Compare the last layer for the class tokens only with the whole of it."""
    layer = _head(options.dim).layers[-1]
    x = torch.randn(1, options.length, options.dim)
    readout = Readout(torch.arange(FRAMES).expand(1, -1), FRAMES)
    return [
        _compare(
            "last layer: only what is read out against everything",
            lambda: readout.select(layer(x)),
            lambda: layer(x, None, readout),
            options,
        )
    ]


def merged_maps(options: argparse.Namespace) -> list[Row]:
    """Compare output projection and FC as one map, at inference, with one after the other."""
    layer = _head(options.dim).layers[0]
    assert isinstance(layer, ResidualLayer)
    mixed = torch.randn(1, options.length, options.dim)
    return [
        _compare(
            "output maps at inference: merged against one after the other",
            lambda: layer.fc(layer.mixer.out_proj(mixed)),
            lambda: F.linear(mixed, *layer._merged_output()),
            options,
        )
    ]


def shared_projection(options: argparse.Namespace) -> list[Row]:
    """Compare one input projection and no flips with two projections and flips."""
    mixer = BiMamba(options.dim).eval()
    x = torch.randn(1, options.length, options.dim)

    def direction(tokens: Tensor, suffix: str) -> Tensor:
        inner, z = F.linear(tokens, mixer.in_proj.weight).chunk(2, dim=-1)
        conv = getattr(mixer, f"conv1d{suffix}")
        inner = F.silu(short_convolution(inner, conv.weight, conv.bias))
        low_rank = getattr(mixer, f"x_proj{suffix}")(inner)
        r, B, C = low_rank.split((mixer.dt_rank, STATES, STATES), -1)
        dt_proj = getattr(mixer, f"dt_proj{suffix}")
        A = -torch.exp(mixer.A_b_log if suffix else mixer.A_log)
        skip = mixer.D_b if suffix else mixer.D
        delta = F.linear(r, dt_proj.weight)
        turned = (t.transpose(1, 2) for t in (inner, delta, B, C, z))
        inner, delta, B, C, z = turned
        y = selective_scan(inner, delta, A, B, C, skip, z, dt_proj.bias, True)
        assert isinstance(y, Tensor)
        return y.transpose(1, 2)

    def flipped() -> Tensor:
        return mixer.out_proj(direction(x, "") + direction(x.flip(1), "_b").flip(1))

    return [
        _compare(
            "mixer: one input projection, no flips against two projections and flips",
            flipped,
            lambda: mixer(x),
            options,
        )
    ]


def _head(dim: int) -> MultiScaleMamba:
    return MultiScaleMamba(dim=dim, init="release").eval()  # "identity" would hide the mixers


def _compare(
    what: str, slow: Callable[[], Tensor], fast: Callable[[], Tensor], options: argparse.Namespace
) -> Row:
    with torch.no_grad():
        require_agreement({"the result": fast()}, {"the result": slow()}, what)
        timings = in_turn({"slow": slow, "fast": fast}, options.repeats)
        return _row(what, timings, slow="slow", fast="fast")


def _row(what: str, timings: dict[str, Timing], *, slow: str, fast: str) -> Row:
    return {
        "what": what,
        "ratio": timings[slow].median / timings[fast].median,
        "slow_s": timings[slow].median,
        "slow_spread_s": timings[slow].spread,
        "fast_s": timings[fast].median,
        "fast_spread_s": timings[fast].spread,
    }


if __name__ == "__main__":
    main()
