"""Peak resident memory of one training step of the head, to be run in a fresh process.

    python -m benchmarks.peak_memory --frames 64 --grid 14 --dim 512 --backend torch

prints the number of tokens and the peak in GiB as JSON.
"""

from __future__ import annotations

import argparse
import json

import torch

from benchmarks.measure import peak_gib
from muse_adapter import MultiScaleMamba
from muse_adapter.ops import backends, use_backend


def main() -> None:
    """Parse the command line, run forward and backward once, print the peak."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, default=64)
    parser.add_argument("--grid", type=int, default=14, help="side of the patch grid")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--backend", default="torch", choices=list(backends()))
    parser.add_argument("--no-checkpointing", action="store_true")
    options = parser.parse_args()

    head = MultiScaleMamba(dim=options.dim, depth=options.depth).train()
    head.set_grad_checkpointing(not options.no_checkpointing)
    lengths: list[int] = []
    head.layers[0].register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    tokens = torch.randn(1, options.frames, 1 + options.grid**2, options.dim, requires_grad=True)
    with use_backend(options.backend):
        head(tokens).sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in head.parameters())
    print(json.dumps({"tokens": lengths[0], "peak_gib": peak_gib()}))


if __name__ == "__main__":
    main()
