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

from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.triton_gpu.convolution_operator import convolutions
from muse_adapter.ops.triton_gpu.gate_operator import gated
from muse_adapter.ops.triton_gpu.scan_operator import scans


class TritonBackend(Backend):
    """Both directions in one launch; convolutions and gate in kernels of their own."""

    name = "triton"
    self_checked = True

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """See `Backend.unavailable`."""
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

    def automatic(self, device: torch.device) -> bool:
        """Whether the device is a GPU: the interpreter runs on CPUs too, slowly."""
        return device.type == "cuda"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Scan in one direction, see `Backend.scan`."""
        (y,), (state,) = scans([inputs])
        return y, state

    def bidirectional_scan(
        self,
        forward: ScanInputs,
        reverse: ScanInputs | None,
        z: Tensor,
        positions: Tensor | None,
    ) -> Tensor:
        """Scan both directions in one launch, see `Backend.bidirectional_scan`."""
        y, _ = scans([forward] if reverse is None else [forward, reverse])
        return gated(z, positions, y)

    def gate(self, y: Tensor, z: Tensor, positions: Tensor | None) -> Tensor:
        """Gate in a kernel of its own, see `Backend.gate`."""
        return gated(z, positions, [y])

    def causal_conv1d_silu(
        self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
    ) -> tuple[Tensor, ...]:
        """Convolve in both directions in one pass, see `Backend.causal_conv1d_silu`."""
        joined = [tensor for pair in weights for tensor in pair]
        return tuple(convolutions(x, joined, end))


TRITON = TritonBackend()


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
