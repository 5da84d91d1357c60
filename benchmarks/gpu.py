"""The triton backend on a GPU: against mamba-ssm, against its floors, the head against attention.

    python -m benchmarks.gpu                  # about ten minutes
    python -m benchmarks.gpu --json FILE
    python -m benchmarks.gpu --no-heads       # the scan alone

Times are medians between device events, alternatives in turn. Nothing is timed before it agreed
with the `torch` backend in the same run. Losses are printed like wins.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.correctness import require_agreement
from benchmarks.machine import machine, write_json
from benchmarks.measure import MemoryMeter, in_turn
from muse_adapter import MultiScaleMamba
from muse_adapter.ops import (
    Direction,
    backends,
    bidirectional_scan,
    causal_conv1d_silu,
    mamba_ssm,
    use_backend,
)

STATES, TAPS = 16, 4
# Frames, side of the grid, and how many times faster than attention the head is to train.
HEADS = [(12, 7, 2.0), (64, 7, 6.0), (64, 14, 15.0)]
BOUND = 2e-2  # of bfloat16 results and gradients, whose last place is 4e-3

Row = dict[str, Any]


def main() -> None:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=3060)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--no-heads", action="store_true", help="the scan alone")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    status = backends("cuda" if torch.cuda.is_available() else "cpu")["triton"]
    if not torch.cuda.is_available() or not status.available:
        raise SystemExit(f"needs a GPU that Triton runs on: {status.reason or 'torch finds none'}")
    torch.manual_seed(0)
    about = {**machine("cuda"), **gpu()}
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    figures: dict[str, Any] = {"machine": about, "scan": scan(options, about)}
    show(figures["scan"])
    if not options.no_heads:
        figures["heads"] = []
        for frames, side, target in HEADS:
            row = head(frames, side, target, options)
            figures["heads"].append(row)
            show(row)
    if options.json:
        write_json(options.json, figures)


def gpu() -> dict[str, Any]:
    """Return the rates that the floors are made of, and the driver."""
    about = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=clocks.max.sm,driver_version", "--format=csv,noheader"]
    done = subprocess.run(query, check=True, capture_output=True, text=True).stdout
    clock, driver = done.splitlines()[0].split(", ")
    return {
        "processors": about.multi_processor_count,
        "clock_hz": float(clock.split()[0]) * 1e6,
        "driver": driver,
        "copy_bytes_per_s": copy_bandwidth(),
    }


def scan(options: argparse.Namespace, about: Mapping[str, Any]) -> Row:
    """Time both directions with their convolutions, forward and backward, in bfloat16."""
    check(options)
    given = inputs(options.batch, options.length, options.dim, torch.bfloat16)
    steps: dict[str, Callable[[], Any]] = {"triton": lambda: step(given, "triton")}
    missing = (
        mamba_ssm.MAMBA_SSM.unavailable(torch.device("cuda")) or mamba_ssm._convolution_error()
    )
    if missing is None:
        other = published_inputs(given)
        steps["mamba_ssm, published way"] = lambda: published_step(other)
    row: Row = {
        "what": f"bidirectional scan with convolutions, forward and backward, B={options.batch}, "
        f"L={options.length}, E={options.dim}, S={STATES}, bfloat16",
        "seconds": medians(steps, options.repeats),
        "peak_bytes": {name: added_bytes(run) for name, run in steps.items()},
        "floors": floors(options.batch, options.length, options.dim, about),
        "not_measured": missing,
    }
    fast = row["seconds"]["triton"]
    row["times_of_the_larger_floor"] = fast / max(f["seconds"] for f in row["floors"].values())
    if missing is None:
        row["times_faster"] = row["seconds"]["mamba_ssm, published way"] / fast
        row["memory_ratio"] = (
            row["peak_bytes"]["triton"] / row["peak_bytes"]["mamba_ssm, published way"]
        )
    return row


def floors(batch: int, length: int, channels: int, about: Mapping[str, Any]) -> dict[str, Row]:
    """Compute what no implementation can be faster than, with the arithmetic it is made of."""
    tokens = batch * length * channels
    states = 2 * tokens * STATES  # of both directions
    rows = 2 * 2 * batch * length * STATES  # B and C of both
    # Forward: read x, z and both deltas, write both convolutions (for the projections that follow
    # them) and the output. Backward: read these inputs, and the gradients of all three outputs;
    # write the gradients of the inputs. bfloat16; B, C and their gradients likewise.
    moved = 2 * ((4 + 3) * tokens + rows) + 2 * ((4 + 3 + 4) * tokens + 2 * rows)
    # Every state once forward and once backward.
    exponentials = 2 * states
    # Forward: dt A, drive B, the recurrence, the output. Backward: the first three again; the
    # gradients of the state (2), of B, C, A, of the drive, of the decay and of its exponent.
    operations = (4 + 3 + 8) * states
    unit = about["processors"] * about["clock_hz"]
    exponential_rate, operation_rate = 16 * unit, 128 * unit
    return {
        "bytes": {
            "seconds": moved / about["copy_bytes_per_s"],
            "arithmetic": f"{moved:,} bytes (18 tensors of B L E = {tokens:,} bfloat16, and B, C) "
            f"/ {about['copy_bytes_per_s']:.3e} bytes/s of a measured copy",
        },
        "exponentials": {
            "seconds": exponentials / exponential_rate,
            "arithmetic": f"{exponentials:,} = 2 passes x 2 directions x B L E S / "
            f"{exponential_rate:.3e}/s = 16 per clock and processor",
        },
        "multiply_adds": {
            "seconds": operations / operation_rate,
            "arithmetic": f"{operations:,} = 15 x 2 directions x B L E S / "
            f"{operation_rate:.3e}/s = 128 per clock and processor",
        },
    }


def head(frames: int, side: int, target: float, options: argparse.Namespace) -> Row:
    """Time a training step of the head, and of the same head with flash attention, in autocast."""
    tokens = torch.randn(
        options.batch, frames, 1 + side**2, options.dim, device="cuda", requires_grad=True
    )
    row: Row = {"what": f"training step of the head, B={options.batch}, T={frames}, {side}x{side}"}
    row["target_times_faster"] = target
    seconds, peaks = {}, {}
    for mixer in ("bimamba", "attention"):
        model = MultiScaleMamba(dim=options.dim, mixer=mixer, init="release").cuda().train()
        lengths: list[int] = []
        model.layers[0].register_forward_pre_hook(
            lambda _, given, lengths=lengths: lengths.append(given[0].shape[1])
        )

        def train(model: Any = model) -> None:
            model.zero_grad(set_to_none=True)
            tokens.grad = None
            with torch.autocast("cuda", torch.bfloat16):
                loss = model(tokens).sum()
            loss.backward()

        try:
            with use_backend("triton"), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                seconds[mixer] = medians({mixer: train}, options.repeats)[mixer]
                peaks[mixer] = added_bytes(train)
        except torch.cuda.OutOfMemoryError as error:
            row[f"{mixer}_failed"] = str(error).splitlines()[0]
        row["tokens"] = lengths[0]
        del model, train
        gc.collect()
        torch.cuda.empty_cache()
    row |= {"seconds": seconds, "peak_bytes": peaks}
    if len(seconds) == 2:
        row["times_faster"] = seconds["attention"] / seconds["bimamba"]
    return row


def inputs(batch: int, length: int, channels: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Make what the mixer hands to the convolutions and the scan, all wanting gradients."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, device="cuda", dtype=dtype)

    given = {"x": normal(batch, length, channels), "z": normal(batch, length, channels)}
    for side in ("forward", "backward"):
        given |= {
            f"{side} delta": normal(batch, length, channels),
            f"{side} B": normal(batch, length, STATES),
            f"{side} C": normal(batch, length, STATES),
            f"{side} A": -torch.arange(1.0, STATES + 1, device="cuda").expand(channels, -1).clone(),
            f"{side} D": torch.ones(channels, device="cuda"),
            f"{side} delta_bias": torch.full((channels,), -4.0, device="cuda"),
            f"{side} weight": torch.randn(channels, 1, TAPS, device="cuda") / 2,
            f"{side} bias": torch.zeros(channels, device="cuda"),
        }
    return {name: tensor.requires_grad_() for name, tensor in given.items()}


def step(given: Mapping[str, Tensor], backend: str) -> dict[str, Tensor]:
    """Return output and gradients, ours."""
    sides = ("forward", "backward")
    weights = [(given[f"{side} weight"], given[f"{side} bias"]) for side in sides]
    convolved = causal_conv1d_silu(given["x"], weights, backend=backend)
    names = ("delta", "A", "B", "C", "D", "delta_bias")
    forward, backward = (
        Direction(y, *(given[f"{side} {name}"] for name in names))
        for side, y in zip(sides, convolved, strict=True)
    )
    y = bidirectional_scan(forward, backward, given["z"], backend=backend)
    gradients = torch.autograd.grad(y.sum(), list(given.values()))
    return {"y": y, **dict(zip(given, gradients, strict=True))}


def published_inputs(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the inputs to mamba-ssm's layout, (batch, E, L), one direction flipped."""
    other = {}
    for name, tensor in given.items():
        value = tensor.detach()
        if value.dim() == 3 and not name.endswith("weight"):
            value = value.transpose(1, 2)
            value = value.flip(-1) if name.startswith("backward") else value
        other[name] = value.contiguous().requires_grad_()
    return other


def published_step(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return output and gradients by two calls of the CUDA kernels, x, z and one result flipped."""
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    total: Any = 0
    for side in ("forward", "backward"):
        flipped = side == "backward"
        x, z = (given[name].flip(-1) if flipped else given[name] for name in ("x", "z"))
        x = causal_conv1d_fn(
            x=x,
            weight=given[f"{side} weight"].squeeze(1).to(x.dtype),
            bias=given[f"{side} bias"].to(x.dtype),
            activation="silu",
        )
        y = selective_scan_fn(
            u=x,
            delta=given[f"{side} delta"],
            A=given[f"{side} A"],
            B=given[f"{side} B"],
            C=given[f"{side} C"],
            D=given[f"{side} D"],
            z=z,
            delta_bias=given[f"{side} delta_bias"],
            delta_softplus=True,
        )
        total = total + (y.flip(-1) if flipped else y)
    return total, *torch.autograd.grad(total.sum(), list(given.values()))


def check(options: argparse.Namespace) -> None:
    """Compare results in bfloat16 with the `torch` backend's in float32, on two videos."""
    given = inputs(min(2, options.batch), options.length, options.dim, torch.bfloat16)
    wide = {name: tensor.detach().float().requires_grad_() for name, tensor in given.items()}
    require_agreement(step(given, "triton"), step(wide, "torch"), "backend triton", BOUND)


def medians(steps: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the median seconds of each alternative."""
    timings = in_turn(steps, repeats, device="cuda")
    return {name: timing.median for name, timing in timings.items()}


def copy_bandwidth() -> float:
    """Return bytes a second, read and written, of a copy of 1 GiB."""
    source = torch.empty(1 << 28, device="cuda")
    target = torch.empty_like(source)
    return 2 * (1 << 30) / medians({"copy": lambda: target.copy_(source)}, 20)["copy"]


def added_bytes(run: Callable[[], Any]) -> int:
    """Return the bytes allocated at most during a run, above those before it."""
    meter = MemoryMeter("cuda")
    run()
    return meter.added()


def show(row: Row) -> None:
    """Print a row, a line for each of its figures."""
    print(f"\n{row['what']}")
    for key, value in row.items():
        if isinstance(value, dict):
            for name, figure in value.items():
                print(f"  {key:<28} {name}: {figure}")
        elif key != "what":
            print(f"  {key:<28} {value}")


if __name__ == "__main__":
    main()
