"""Peak resident memory of one training step of the head, and of scores of all pairs.

    python -m benchmarks.peak_memory --frames 64 --grid 14 --dim 512 --backend torch

prints the number of tokens and the peak in GiB as JSON.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import MemoryMeter
from muse_adapter import (
    EERCF,
    MultiScaleMamba,
    TextGatedInteraction,
    late_interaction,
    token_similarity,
)
from muse_adapter.ops import backends, use_backend


def main() -> None:
    """Parse the command line and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--grid", type=int, default=14, help="side of the patch grid")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--backend", default="torch", choices=list(backends()))
    parser.add_argument("--no-checkpointing", action="store_true")
    options = vars(parser.parse_args())
    print(json.dumps(training_peak(checkpointing=not options.pop("no_checkpointing"), **options)))


def training_peak(
    frames: int = 64,
    grid: int = 14,
    dim: int = 512,
    depth: int = 4,
    backend: str = "torch",
    checkpointing: bool = True,
) -> dict[str, Any]:
    """Run forward and backward once, in a process that has done nothing else.

    Args:
        frames: T.
        grid: Side of the patch grid.
        dim: Width D.
        depth: Layers.
        backend: Of the scan.
        checkpointing: Whether gradients are checkpointed.

    Returns:
        The `tokens` of the layers and the `peak_gib` of the process.
    """
    head = MultiScaleMamba(dim=dim, depth=depth).train()
    head.set_grad_checkpointing(checkpointing)
    lengths: list[int] = []
    head.layers[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    tokens = torch.randn(1, frames, 1 + grid**2, dim, requires_grad=True)
    with use_backend(backend):
        head(tokens).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())
    return {"tokens": lengths[0], "peak_gib": MemoryMeter().peak() / 2**30}


def scoring_peak(
    score: str = "gate", texts: int = 500, videos: int = 500, tokens: int = 64, dim: int = 512
) -> float:
    """Score all pairs and run backward, in a process that has done nothing else.

    Args:
        score: "gate" (keys and values differ), "similarity", "late_interaction" (of 16 words),
            "eercf_scores" or "eercf_loss" (one text for each video), both without patches.
        texts: A.
        videos: B.
        tokens: N.
        dim: Width D.

    Returns:
        The peak of the process in GiB, inputs and gradients included.
    """
    shape = (texts, 16, dim) if score == "late_interaction" else (texts, dim)
    text = torch.randn(shape, requires_grad=True)
    keys, values = (torch.randn(videos, tokens, dim, requires_grad=True) for _ in range(2))
    result: Tensor
    match score:
        case "gate":
            result = TextGatedInteraction()(text, keys, values).square().sum()
        case "similarity":
            result = token_similarity(text, keys).square().sum()
        case "late_interaction":
            result = late_interaction(text, keys).square().sum()
        case "eercf_scores":
            scores = EERCF(dim, tokens).scores(text, keys, values)
            result = torch.stack([x for x in scores if x is not None]).square().sum()
        case "eercf_loss":
            scale = torch.zeros((), requires_grad=True)
            result = EERCF(dim, tokens).loss(text, keys, values, logit_scale=scale).total
        case _:
            raise ValueError(f"unknown score {score!r}")
    result.backward()
    assert text.grad is not None and bool(text.grad.isfinite().all())
    return MemoryMeter().peak() / 2**30


if __name__ == "__main__":
    main()
