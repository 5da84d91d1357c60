"""Both directions of the scan with convolutions and gate: against its floors, kernel by kernel.

    python -m benchmarks.gpu.scan --json FILE

Nothing is timed before it agreed with the `torch` backend in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks.gpu.environment import rates
from benchmarks.gpu.floors import floors, floors_around
from benchmarks.gpu.kernels import seconds_by_kernel
from benchmarks.gpu.part import Options, Row, peak_bytes, replayed, run_part, times
from benchmarks.gpu.workload import (
    ONE_VIDEO,
    Sizes,
    check,
    convolutions,
    inputs,
    output,
    sizes,
    step,
)


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Check, then time the paper's training step, and one video."""
    size = sizes(options)
    check(size, options.device)
    about = rates(options)
    yield measure(size, about, options)
    if not options.tiny:
        yield measure(ONE_VIDEO, about, options)


def measure(size: Sizes, about: Mapping[str, Any], options: Options) -> Row:
    """Time the passes of a training step together and apart, and inference.

    `replayed` is of a CUDA graph: what the GPU needs, without the host's launches.
    """
    given = inputs(size, options.device)

    def training() -> Any:
        return step(given, "triton")

    @torch.no_grad()
    def inference() -> Any:
        return output(given, "triton")

    # Captured before any other graph of autograd holds the inputs, on another stream.
    replays = {
        "training, replayed": replayed(training, options),
        "inference, replayed": replayed(inference, options),
    }
    wanted = list(given.values())
    y = output(given, "triton")
    cotangent = torch.ones_like(y)
    convolved = convolutions(given, "triton")
    cotangents = [torch.ones_like(result) for result in convolved]

    def forward() -> Any:
        return output(given, "triton")

    def backward() -> Any:
        return torch.autograd.grad(y, wanted, cotangent, retain_graph=True)

    def convolve() -> Any:
        return convolutions(given, "triton")

    def convolve_back() -> Any:
        return torch.autograd.grad(convolved, given["x"], cotangents, retain_graph=True)

    steps: dict[str, Callable[[], Any]] = {
        "training": training,
        "inference": inference,
        "forward of training": forward,
        "backward of training": backward,
        "convolutions, forward": convolve,
        "convolutions, backward": convolve_back,
        **replays,
    }
    row: Row = {"what": f"scan of both directions with convolutions and gate, {size}"}
    row |= times(steps, options)
    row["peak_bytes"] = {
        "training": peak_bytes(training, options),
        "inference": peak_bytes(inference, options),
    }
    for kind in ("training", "inference"):
        bounds = floors(size, about, training=kind == "training")
        largest = max(bound["seconds"] for bound in bounds.values())
        row[f"{kind}_floors"] = bounds
        row[f"{kind}_times_of_the_larger_floor"] = row["seconds"][kind] / largest
        replay = row["seconds"][f"{kind}, replayed"]
        row[f"{kind}_replayed_times_of_the_larger_floor"] = replay / largest
    row["floors_around"] = floors_around(size, about)
    row["forward_kernels_s"] = seconds_by_kernel(forward, options.device)
    row["backward_kernels_s"] = seconds_by_kernel(backward, options.device)
    return row


if __name__ == "__main__":
    main()
