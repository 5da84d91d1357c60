"""The scan on CPU: kernels compiled by numba on first use, shared by threads.

Parallel over videos and blocks of channels, sequential in time. The forward pass keeps the state
before every chunk of time, and the backward pass computes those inside a chunk anew, so that no
tensor of shape (batch, L, E, S) exists.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from muse_adapter.ops import operator
from muse_adapter.ops.convolution import convolve_in_turn
from muse_adapter.ops.numba_cpu import team as team  # watches forks from now on
from muse_adapter.ops.numba_cpu.convolution_operator import causal_conv1d_silu as fused_convolutions
from muse_adapter.ops.numba_cpu.mamba import mamba_inference as mamba_inference
from muse_adapter.ops.numba_cpu.winograd_operator import conv3x3 as conv3x3

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


def kept_shape(batch: int, length: int, channels: int, states: int) -> tuple[int, ...]:
    """The state before every chunk of time, for each block of channels."""
    from muse_adapter.ops.numba_cpu.function import CHUNK, WIDTH

    return batch, -(-channels // WIDTH), -(-length // CHUNK), states, WIDTH


def scan_forward(
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
    kept: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Outputs and last state; see `muse_adapter.ops.dispatch`."""
    from muse_adapter.ops.numba_cpu.function import prepare, run_forward

    call = prepare(x, delta, A, B, C, D, delta_bias, lengths, delta_softplus, reverse)
    y = call.x.new_empty(call.x.shape)
    last = run_forward(call, y, kept)
    last = last.transpose(2, 3).flatten(1, 2)  # (batch, E, S), from blocks
    channels = x.shape[2]
    return (y, last) if y.shape[2] == channels else (y[..., :channels], last[:, :channels])


def scan_backward(
    grad_y: Tensor | None,
    grad_state: Tensor | None,
    kept: Tensor,
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
) -> tuple[Tensor | None, ...]:
    """Gradients of all tensors; see `muse_adapter.ops.dispatch`."""
    from muse_adapter.ops.numba_cpu.function import as_given, padded, prepare, run_backward

    call = prepare(x, delta, A, B, C, D, delta_bias, lengths, delta_softplus, reverse)
    spare = call.x.shape[2] - x.shape[2]
    if grad_y is not None:
        grad_y = padded(grad_y, spare)
    if grad_state is not None:  # into blocks
        grad_state = padded(grad_state.transpose(1, 2), spare)
        grad_state = grad_state.unflatten(2, call.A_log2e.shape[::2]).transpose(1, 2)
    gradients = as_given(call, run_backward(call, kept, grad_y, grad_state), B, C, spare)
    absent = (False,) * 5 + (D is None, delta_bias is None)
    return tuple(None if no else gradient for no, gradient in zip(absent, gradients, strict=True))


scan = functools.partial(operator.scan, NAME)


def causal_conv1d_silu(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
) -> tuple[Tensor, ...]:
    """SiLU of the short convolutions; see `muse_adapter.ops.dispatch`.

    In half precision, and for widths that are no multiple of 16, by torch's own operations.
    """
    if x.shape[2] % 16 or x.dtype not in (torch.float32, torch.float64):
        return convolve_in_turn(x, weights, end)
    return fused_convolutions(x, weights, end)
