"""What no implementation of the scan with its convolutions can be faster than.

Each floor carries the arithmetic it is made of. Rates are those of `benchmarks.gpu.environment`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.workload import STATES, Sizes

Floors = dict[str, dict[str, Any]]

# Of a clock and processor, by NVIDIA's table of arithmetic throughput for capability 9.0.
EXPONENTIALS, MULTIPLY_ADDS = 16, 128


def floors(size: Sizes, rates: Mapping[str, Any], *, training: bool) -> Floors:
    """Compute the floors of a forward pass, or with `training` of a backward pass too.

    Args:
        size: Of both directions, in bfloat16.
        rates: `processors`, `clock_hz` and `copy_bytes_per_s`.
        training: Also the backward pass.
    """
    batch, length, channels = size
    tokens = batch * length * channels
    states = 2 * tokens * STATES  # of both directions
    rows = 2 * 2 * batch * length * STATES  # B and C of both
    # Forward: read x, z and both deltas, write both convolutions (for the projections that follow
    # them) and the output. Backward: read these inputs, and the gradients of all three outputs;
    # write the gradients of the inputs. bfloat16; B, C and their gradients likewise.
    tensors, matrices = (4 + 3) + (4 + 3 + 4) * training, 1 + 2 * training
    # Every state once forward and once backward.
    passes = 1 + training
    # Forward: dt A, drive B, the recurrence, the output. Backward: the first three again; the
    # gradients of the state (2), of B, C, A, of the drive, of the decay and of its exponent.
    operations = 4 + (3 + 8) * training
    moved = 2 * (tensors * tokens + matrices * rows)
    unit = rates["processors"] * rates["clock_hz"]
    return {
        "bytes": _bytes(
            moved, f"{tensors} tensors of B L E = {tokens:,} bfloat16, and B, C", rates
        ),
        "exponentials": {
            "seconds": passes * states / (EXPONENTIALS * unit),
            "arithmetic": f"{passes * states:,} = {passes} passes x 2 directions x B L E S / "
            f"{EXPONENTIALS * unit:.3e}/s = {EXPONENTIALS} per clock and processor",
        },
        "multiply_adds": {
            "seconds": operations * states / (MULTIPLY_ADDS * unit),
            "arithmetic": f"{operations * states:,} = {operations} x 2 directions x B L E S / "
            f"{MULTIPLY_ADDS * unit:.3e}/s = {MULTIPLY_ADDS} per clock and processor",
        },
    }


def floors_around(size: Sizes, rates: Mapping[str, Any]) -> Floors:
    """Compute the floors of the kernels around the scan, by the bytes each must move."""
    tokens = size.batch * size.length * size.channels
    moved = {
        "convolutions, forward": (2 + 2 * 2, "x, both results"),
        "convolutions, backward": (2 + 2 * 2 + 2, "x, gradients of both results and of x"),
        "gate, forward": (2 * 4 + 2 + 2 + 2, "two float32 sums; z, result, saved sum"),
        "gate, backward": (3 * 2 + 4 + 2, "three bfloat16 read; float32 and bfloat16 gradient"),
    }
    return {
        name: _bytes(count * tokens, f"{count} bytes a token and channel: {what}", rates)
        for name, (count, what) in moved.items()
    }


def _bytes(moved: int, what: str, rates: Mapping[str, Any]) -> dict[str, Any]:
    rate = rates["copy_bytes_per_s"]
    return {
        "seconds": moved / rate,
        "arithmetic": f"{moved:,} bytes ({what}) / {rate:.3e} bytes/s of a measured copy",
    }
