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
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.correctness import require_agreement
from benchmarks.isolated import isolated
from benchmarks.machine import machine, where, write_json
from benchmarks.measure import MemoryMeter, in_turn
from muse_adapter.ops import backends, selective_scan

LENGTHS = (254, 1000, 3060, 8160, 12_360, 32_960, 65_920)
STATES = 16
INPUTS = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
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
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU: torch finds none")
    torch.manual_seed(0)

    about = machine(options.device)
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
    """Return a row for every backend that runs here."""
    names = [name for name, status in backends(options.device).items() if status.available]
    if length > LONGEST_REFERENCE:
        names.remove("reference")
    inputs = arguments(options.dim, length, options.device)
    expected = step(inputs, names[0])
    for name in names[1:]:
        require_agreement(step(inputs, name), expected, f"backend {name}")
    timings = {}
    for kind, run in (("forward", scan), ("training", step)):
        runs = {name: functools.partial(run, inputs, name) for name in names}
        with torch.set_grad_enabled(kind == "training"):
            timings[kind] = in_turn(runs, options.repeats, device=options.device)
    rows: list[Row] = []
    for name in names:
        row: Row = {"length": length, "backend": name}
        for kind, found in timings.items():
            row |= {f"{kind}_s": found[name].median, f"{kind}_spread_s": found[name].spread}
        if not options.no_memory:
            row["peak_gib"] = isolated(peak_gib, name, length, options.dim, options.device)
        rows.append(row)
    return rows


def markdown_table(figures: dict[str, Any]) -> str:
    """Write the table of the documents from what `--json` wrote."""
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
    """Make u, delta, A, B, C, D, z and delta_bias of one video, which want gradients.

    In memory time comes before channels, as the linear layers of a mixer give it.
    """
    u, delta, z = torch.randn(3, 1, length, channels).transpose(2, 3)
    A = -torch.arange(1.0, STATES + 1).expand(channels, -1).clone()
    B, C = torch.randn(2, 1, length, STATES).transpose(2, 3)
    tensors = [u, delta - 2, A, B, C, torch.ones(channels), z, torch.zeros(channels)]
    return [tensor.to(device).requires_grad_() for tensor in tensors]


def scan(inputs: list[Tensor], backend: str) -> Tensor:
    """Return the output."""
    u, delta, A, B, C, D, z, delta_bias = inputs
    y = selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True, backend=backend)
    assert isinstance(y, Tensor)
    return y


def step(inputs: list[Tensor], backend: str) -> dict[str, Tensor]:
    """Return the output and all gradients."""
    y = scan(inputs, backend)
    gradients = torch.autograd.grad(y.square().sum(), inputs)
    named = zip(INPUTS, gradients, strict=True)
    return {"y": y.detach(), **{f"the gradient of {name}": value for name, value in named}}


def peak_gib(backend: str, length: int, dim: int, device: str) -> float:
    """Run forward and backward once, in a process that has done nothing else.

    Returns:
        The peak: on a CPU resident memory, on a GPU what torch has allocated.
    """
    torch.manual_seed(0)
    meter = MemoryMeter(device)
    step(arguments(dim, length, device), backend)
    return meter.peak() / 2**30


if __name__ == "__main__":
    main()
