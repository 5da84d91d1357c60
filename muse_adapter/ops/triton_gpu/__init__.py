"""The scan on GPU: kernels written in Triton, which compiles them on first use.

Both directions run in one launch, each over its own inputs in the order of time: nothing is
flipped. Parallel over videos, directions and blocks of channels, and over segments of time where
these do not fill the chip: what each segment adds to the state, the carry from one to the next,
then the outputs. The backward pass runs likewise, from states that the forward pass keeps every few
steps. All sums have a fixed order.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence

import torch
from torch import Tensor

from muse_adapter.ops.bidirectional import Direction
from muse_adapter.ops.triton_gpu import operators

NAME = "triton"
AUTOMATIC = False  # until the kernels have run on a GPU


def unavailable(device: torch.device | None = None) -> str | None:
    """Say why this backend cannot run.

    Args:
        device: where the tensors are; None asks about the machine.

    Returns:
        None if it can run, else the reason and what would fix it.
    """
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed: pip install 'muse-adapter[triton]'"
    error = _load_error()
    if error is not None:
        return error
    kind = "cuda" if device is None and torch.cuda.is_available() else "cpu"
    kind = kind if device is None else device.type
    if _interpreted():
        return None if kind in ("cpu", "cuda") else f"Triton's interpreter cannot read {device}"
    if kind != "cuda":
        given = "torch finds no GPU" if device is None else f"got {device}"
        return (
            f"runs on GPUs, {given}: move the tensors to one, or set TRITON_INTERPRET=1 to run "
            "the kernels slowly on the CPU"
        )
    if torch.version.cuda and torch.cuda.get_device_capability(device) < (7, 0):
        return "Triton needs a GPU of compute capability 7.0 or newer: use the backend 'torch'"
    return None


@functools.cache
def _load_error() -> str | None:
    try:
        import triton

        import muse_adapter.ops.triton_gpu.function  # noqa: F401
    except Exception as error:  # an old or broken triton raises whatever it likes
        return f"triton does not load ({error}): pip install --upgrade 'muse-adapter[triton]'"
    # Kernels that hold tuples of tensors load in 3.2 too, and fail when they run.
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 3):
        return f"triton {triton.__version__} is older than 3.3, which torch 2.7 and newer work with"
    return None


def _interpreted() -> bool:
    """Whether Triton was told, before it was first used, to run kernels without a GPU."""
    from triton.runtime import JITFunction

    from muse_adapter.ops.triton_gpu.forward import outputs

    return not isinstance(outputs, JITFunction)


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
    """Run one direction; args and returns are those of the contract in `dispatch`."""
    D = A.new_zeros(A.shape[0]) if D is None else D
    bias = A.new_zeros(A.shape[0]) if delta_bias is None else delta_bias
    fields = [x, delta, A, B, C, D, bias]
    (y,), (state,) = operators.scans(fields, lengths, int(reverse), delta_softplus)
    return y, state


def bidirectional_scan(
    forward: Direction,
    backward: Direction | None,
    z: Tensor,
    *,
    lengths: Tensor | None,
    positions: Tensor | None,
) -> Tensor:
    """Both directions in one launch; see `muse_adapter.ops.dispatch`."""
    sides = [forward] if backward is None else [forward, backward]
    fields = [
        tensor
        for x, delta, A, B, C, D, delta_bias in sides
        for tensor in (x, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, delta_bias)
    ]
    y, _ = operators.scans(fields, lengths, 0b10, True)
    return operators.gated(z, positions, y)


def causal_conv1d_silu(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
) -> tuple[Tensor, ...]:
    """SiLU of both convolutions in one pass; see `muse_adapter.ops.dispatch`."""
    joined = [tensor for pair in weights for tensor in pair]
    return tuple(operators.convolutions(x, joined, end))
