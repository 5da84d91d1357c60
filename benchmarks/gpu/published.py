"""The scan with convolutions and gate against mamba-ssm as published: two calls, and flips.

    python -m benchmarks.gpu.published --json FILE

Where mamba-ssm or causal-conv1d does not load, the row says why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.correctness import require_agreement
from benchmarks.gpu.part import Options, Row, peak_bytes, replayed, run_part, times
from benchmarks.gpu.workload import BOUND, SIDES, Sizes, expected, inputs, sizes, step
from muse_adapter.ops import mamba_ssm

TARGET = 2.0  # times faster, training


def main() -> None:
    """Run the part."""
    run_part(rows, __doc__.splitlines()[0])


def rows(options: Options) -> Iterator[Row]:
    """Check both against the `torch` backend, then time a training step of each."""
    size = sizes(options)
    row: Row = {"what": f"scan against mamba-ssm, forward and backward, {size}"}
    if missing := unavailable(options):
        yield row | {"not_measured": missing}
        return
    check(size, options)
    given = inputs(size, options.device)
    other = published_inputs(given)
    steps: dict[str, Callable[[], Any]] = {
        "triton": lambda: step(given, "triton"),
        "mamba-ssm": lambda: published_step(other),
    }
    row |= times(
        steps | {f"{name}, replayed": replayed(run, options) for name, run in steps.items()},
        options,
    )
    row["peak_bytes"] = {name: peak_bytes(run, options) for name, run in steps.items()}
    row["target_times_faster"] = TARGET
    row["times_faster"] = row["seconds"]["mamba-ssm"] / row["seconds"]["triton"]
    row["replayed_times_faster"] = (
        row["seconds"]["mamba-ssm, replayed"] / row["seconds"]["triton, replayed"]
    )
    row["memory_ratio"] = row["peak_bytes"]["triton"] / row["peak_bytes"]["mamba-ssm"]
    yield row


def unavailable(options: Options) -> str | None:
    """Say why the published kernels cannot run here; None: they can."""
    device = torch.device(options.device)
    return mamba_ssm.MAMBA_SSM.unavailable(device) or mamba_ssm._convolution_error()


def check(size: Sizes, options: Options) -> None:
    """Compare both with the `torch` backend in float32, on two videos.

    Raises:
        SystemExit: They differ.
    """
    given = inputs(size._replace(batch=min(2, size.batch)), options.device)
    right = expected(given)
    require_agreement(step(given, "triton"), right, "backend triton", BOUND)
    published = dict(zip(["y", *given], published_step(published_inputs(given)), strict=True))
    turned = {name: _turned(name, tensor, 2) for name, tensor in published.items()}
    require_agreement(turned, right, "mamba-ssm as published", BOUND)


def published_inputs(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copy the inputs to mamba-ssm's layout, (batch, E, L), one direction flipped."""
    return {
        name: _turned(name, tensor.detach(), 1).contiguous().requires_grad_()
        for name, tensor in given.items()
    }


def _turned(name: str, tensor: Tensor, time: int) -> Tensor:
    """Exchange time and channels; flip time, a dimension, of the backward direction's own."""
    if tensor.dim() < 3 or name.endswith("weight"):
        return tensor
    return (tensor.flip(time) if name.startswith("backward") else tensor).transpose(1, 2)


def published_step(given: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    """Return output and gradients by two calls of the CUDA kernels, x, z and one result flipped."""
    from causal_conv1d import causal_conv1d_fn
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    total: Any = 0
    for side in SIDES:
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
    return total.detach(), *torch.autograd.grad(total.sum(), list(given.values()))


if __name__ == "__main__":
    main()
