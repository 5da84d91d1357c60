"""The scan on CPU: kernels compiled by numba on first use, on a few threads of ours.

Parallel over videos and blocks of channels, sequential in time. The forward pass keeps the state
before every chunk of time, and the backward pass computes those inside a chunk anew, so that no
tensor of shape (batch, L, E, S) exists.
"""

from __future__ import annotations

import functools
import importlib.util
import os

import torch
from torch import Tensor

NAME = "numba"


def unavailable(device: torch.device | None = None) -> str | None:
    """Say why this backend cannot run.

    Args:
        device: where the tensors are; None asks about the machine.

    Returns:
        None if it can run, else the reason and what would fix it.
    """
    if device is not None and device.type != "cpu":
        return f"runs on CPU tensors only, got {device}"
    if torch.compiler.is_compiling():
        return "torch.compile cannot trace it: use the backend 'torch' inside compiled code"
    if importlib.util.find_spec("numba") is None:
        return "numba is not installed: pip install 'muse-adapter[cpu]'"
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        return "numba is told not to compile: unset NUMBA_DISABLE_JIT"
    return _load_error()


@functools.cache
def _load_error() -> str | None:
    try:
        import muse_adapter.ops.numba_cpu.function  # noqa: F401
    except Exception as error:  # an old or broken numba raises whatever it likes
        return f"numba does not load ({error}): pip install --upgrade 'muse-adapter[cpu]'"
    return None


def scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    *,
    delta_softplus: bool,
    reverse: bool,
    lengths: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """The selective scan, differentiable once in every tensor and through both outputs.

    h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t from h = 0, and y_t = <C_t, h_t> + D x_t, with
    dt = softplus(delta + delta_bias) or delta + delta_bias.

    Args:
        x, delta: (batch, L, E), any floating type.
        A: (E, S).
        B, C: (batch, L, G, S), channel e in group e // (E // G); batch and L may be 1 for what is
            the same everywhere.
        D, delta_bias: (E,) or None.
        delta_softplus: pass the step sizes through softplus.
        reverse: time runs from the last valid position to the first.
        lengths: (batch,) valid positions of each video, or None. What stands behind them is not
            read; its outputs and gradients are 0.

    Returns:
        y (batch, L, E) and the last state (batch, E, S): float64 for a float64 x, else float32.
    """
    from muse_adapter.ops.numba_cpu.function import Scan, prepare, run_forward

    call = prepare(x, delta, A, B, C, D, delta_bias, lengths, delta_softplus, reverse)
    wanted = any(isinstance(part, Tensor) and part.requires_grad for part in call)
    if torch.is_grad_enabled() and wanted:
        y, last = Scan.apply(*call)
    else:
        y, last = run_forward(call, None)
    last = last.transpose(2, 3).flatten(1, 2)  # (batch, E, S), from blocks
    channels = x.shape[2]
    if y.shape[2] > channels:
        y, last = y[..., :channels], last[:, :channels]
    return y, last
