"""The scan by backend and length: forward, forward and backward, peak memory; one direction.

    python -m benchmarks.scan                 # the table, about five minutes on two cores
    python -m benchmarks.scan --json FILE
    python -m benchmarks.scan --lengths 254 3060 --no-memory
    python -m benchmarks.scan --device cuda

A backend is timed only after its outputs and gradients agreed with the others' in the same run.
"""

from __future__ import annotations

import argparse
import functools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import agree, in_turn, machine, peak_gib, where, write_json
from muse_adapter.ops import backends, selective_scan

LENGTHS = (254, 1000, 3060, 8160, 12_360, 32_960, 65_920)
STATES = 16
# The reference keeps every state of every step, and takes seconds already here.
LONGEST_REFERENCE = 12_360

Row = dict[str, Any]


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--dim", type=int, default=512, help="channels E")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--no-memory", action="store_true", help="the times alone")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peak-memory-of", metavar="BACKEND", help=argparse.SUPPRESS)
    options = parser.parse_args()
    on_gpu = options.device == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU: torch finds none")
    torch.manual_seed(0)
    if options.peak_memory_of:  # the fresh process of one row
        step(arguments(options.dim, options.lengths[0], options.device), options.peak_memory_of)
        print(json.dumps(torch.cuda.max_memory_allocated() / 2**30 if on_gpu else peak_gib()))
        return

    about = machine()
    if on_gpu:
        about["gpu"] = torch.cuda.get_device_name()
    print(", ".join(f"{key} {value}" for key, value in about.items()))
    figures: dict[str, Any] = {"machine": about, "dim": options.dim, "rows": []}
    for length in options.lengths:
        for row in measure(length, options):
            print(
                f"L={length:<7,} {row['backend']:<10} forward {row['forward_s'] * 1e3:9.2f} ms, "
                f"and backward {row['training_s'] * 1e3:9.2f} ms"
                + (f", peak {row['peak_gib']:.2f} GiB" if "peak_gib" in row else "")
            )
            figures["rows"].append(row)
        if options.json:
            write_json(options.json, figures)
    print("\n" + markdown_table(figures))


def measure(length: int, options: argparse.Namespace) -> list[Row]:
    """A row for every backend that runs here."""
    names = [name for name, status in backends(options.device).items() if status.available]
    if length > LONGEST_REFERENCE:
        names.remove("reference")
    inputs = arguments(options.dim, length, options.device)
    expected = step(inputs, names[0])
    for name in names[1:]:
        for got, wanted in zip(step(inputs, name), expected, strict=True):
            agree(got, wanted, f"backend {name}")
    with torch.no_grad():
        forward = in_turn(
            {name: functools.partial(to_the_end, scan, inputs, name) for name in names},
            options.repeats,
        )
    training = in_turn(
        {name: functools.partial(to_the_end, step, inputs, name) for name in names},
        options.repeats,
    )
    rows: list[Row] = []
    for name in names:
        row: Row = {"length": length, "backend": name}
        for kind, timings in (("forward", forward), ("training", training)):
            row[f"{kind}_s"], row[f"{kind}_spread_s"] = timings[name]
        if not options.no_memory:
            row["peak_gib"] = peak_memory(name, length, options)
        rows.append(row)
    return rows


def markdown_table(figures: dict[str, Any]) -> str:
    """The table of the README, from what `--json` wrote: each backend against the others."""
    names = list(dict.fromkeys(row["backend"] for row in figures["rows"]))
    pairs = [(fast, slow) for i, fast in enumerate(names) for slow in names[i + 1 :]]
    heads = [
        f"{kind}: {fast} against {slow}" for kind in ("fwd", "fwd+bwd") for fast, slow in pairs
    ]
    heads += [f"GiB: {name}" for name in names]
    lines = [
        f"{where(figures['machine'])}: one direction, one video, E={figures['dim']}, S={STATES}; "
        "how many times faster, by medians of alternatives in turn, and the peak of a fresh "
        "process:",
        "",
        "| L | " + " | ".join(heads) + " |",
        "|---|" + "---|" * len(heads),
    ]
    for length in dict.fromkeys(row["length"] for row in figures["rows"]):
        rows = {row["backend"]: row for row in figures["rows"] if row["length"] == length}
        cells = []
        for kind in ("forward_s", "training_s"):
            for fast, slow in pairs:
                measured = fast in rows and slow in rows
                cells.append(f"{rows[slow][kind] / rows[fast][kind]:.1f}" if measured else "")
        for name in names:
            peak = rows.get(name, {}).get("peak_gib")
            cells.append("" if peak is None else f"{peak:.2f}")
        lines.append(f"| {length:,} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def arguments(channels: int, length: int, device: str) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias of one video, which want gradients.

    In memory time comes before channels, as the linear layers of a mixer give it.
    """
    u, delta, z = torch.randn(3, 1, length, channels).transpose(2, 3)
    A = -torch.arange(1.0, STATES + 1).expand(channels, -1).clone()
    B, C = torch.randn(2, 1, length, STATES).transpose(2, 3)
    tensors = [u, delta - 2, A, B, C, torch.ones(channels), z, torch.zeros(channels)]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def scan(inputs: list[Tensor], backend: str) -> Tensor:
    """The output."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    y = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, backend=backend)
    assert isinstance(y, Tensor)
    return y


def step(inputs: list[Tensor], backend: str) -> tuple[Tensor, ...]:
    """The output and all gradients."""
    y = scan(inputs, backend)
    return y.detach(), *torch.autograd.grad(y.square().sum(), inputs)


def to_the_end(
    run: Callable[[list[Tensor], str], object], inputs: list[Tensor], backend: str
) -> None:
    """Run, and wait for a GPU, which is not done when Python is."""
    run(inputs, backend)
    if inputs[0].is_cuda:
        torch.cuda.synchronize()


def peak_memory(backend: str, length: int, options: argparse.Namespace) -> float:
    """Peak in GiB of a fresh process that runs forward and backward once.

    On a CPU it is resident memory, on a GPU what torch has allocated.
    """
    command = [sys.executable, "-m", "benchmarks.scan", "--peak-memory-of", backend]
    command += ["--lengths", str(length), "--dim", str(options.dim), "--device", options.device]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


if __name__ == "__main__":
    main()
