"""The scan on CPU: kernels compiled by numba on first use, shared by threads.

Parallel over videos and blocks of channels, sequential in time. The forward pass saves the state
before every chunk of time, and the backward pass recomputes those inside a chunk, so that no tensor
of shape (batch, L, E, S) exists.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Sequence

import torch
from torch import Tensor

from muse_adapter.ops.checks import values_can_be_asked
from muse_adapter.ops.inputs import ScanInputs, gradient_wanted
from muse_adapter.ops.mixer_inputs import MixerInputs, MixerState
from muse_adapter.ops.numba_cpu import convolution_operator, mixer_operator, winograd_operator
from muse_adapter.ops.operator import OperatorBackend
from muse_adapter.ops.processor import onednn_convolves_faster
from muse_adapter.ops.rows import contiguous_rows, leaves, row_kind
from muse_adapter.ops.text_gate_inputs import TextGateInputs
from muse_adapter.ops.top_vectors_inputs import TopProductsInputs
from muse_adapter.ops.torch_private import in_forward_mode

TYPES = torch.float32, torch.float64  # of the kernels; half precision is computed in float32
# A shorter chunk of a stream is one slice, whose schedule costs more than it saves.
MIN_SLICED_CHUNK = 1024
LANES = 16  # channels in a vector of the kernels, which are not loaded to ask


class NumbaBackend(OperatorBackend):
    """Kernels for CPUs: the scan, both convolutions, and at inference the mixer in slices."""

    name = "numba"

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """See `Backend.unavailable`."""
        if device is not None and device.type != "cpu":
            return f"runs on CPU tensors only, got {device}"
        if importlib.util.find_spec("numba") is None:
            return "numba is not installed: pip install 'muse-adapter[cpu]'"
        if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
            return "numba is told not to compile: unset NUMBA_DISABLE_JIT"
        return _load_error()

    def saved_states_shape(
        self, batch: int, length: int, channels: int, states: int
    ) -> tuple[int, ...]:
        """Return the shape of the states before every chunk of time, for each block of channels."""
        from muse_adapter.ops.numba_cpu.function import CHUNK, WIDTH

        return batch, -(-channels // WIDTH), -(-length // CHUNK), states, WIDTH

    def scan_forward(
        self, inputs: ScanInputs, saved_states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `OperatorBackend.scan_forward`."""
        from muse_adapter.ops.numba_cpu.function import scan_forward

        return scan_forward(inputs, saved_states)

    def scan_backward(
        self,
        inputs: ScanInputs,
        saved_states: Tensor,
        grad_y: Tensor | None,
        grad_state: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """See `OperatorBackend.scan_backward`."""
        from muse_adapter.ops.numba_cpu.function import scan_backward

        return scan_backward(inputs, saved_states, grad_y, grad_state)

    def causal_conv1d_silu(
        self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
    ) -> tuple[Tensor, ...]:
        """Convolve in both directions in one pass, see `Backend.causal_conv1d_silu`."""
        if x.shape[2] % LANES or x.dtype not in TYPES:
            return super().causal_conv1d_silu(x, weights, end)
        return convolution_operator.causal_conv1d_silu(x, weights, end)

    def conv3x3(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Convolve maps by Winograd's minimal filtering, see `Backend.conv3x3`."""
        outputs, inputs = weight.shape[:2]
        if (
            torch.is_autocast_enabled(x.device.type)
            or x.dtype not in TYPES
            or not x.dtype == weight.dtype == bias.dtype
            or not (x.dim() == 4 and x.shape[1] == inputs and x.shape[2] and x.shape[3])
            or weight.shape != (outputs, inputs, 3, 3)
            or bias.shape != (outputs,)
            or not (inputs and outputs)
            or inputs % LANES
            or outputs % LANES
            or onednn_convolves_faster()  # where torch is the faster one, see `winograd`
        ):  # torch says what does not fit
            return super().conv3x3(x, weight, bias)
        return winograd_operator.conv3x3(x, weight, bias)

    def text_gated_scores(self, inputs: TextGateInputs) -> tuple[Tensor, Tensor]:
        """Read half precision and int8 once, without gradients, see `Backend.text_gated_scores`."""
        if not _reads_rows(inputs):
            return super().text_gated_scores(inputs)
        from muse_adapter.ops.numba_cpu.text_gate import text_gated_scores

        return text_gated_scores(inputs)

    def byte_products(self, numbers: Tensor, scales: Tensor, queries: Tensor) -> Tensor:
        """Read int8 once, see `Backend.byte_products`."""
        if numbers.shape[1] % LANES or not _plain(numbers):
            return super().byte_products(numbers, scales, queries)
        from muse_adapter.ops.numba_cpu.byte_vectors import byte_products

        return byte_products(numbers, scales, queries)

    def top_products(self, inputs: TopProductsInputs) -> tuple[Tensor, Tensor]:
        """Read vectors in half precision and float32 in place, see `Backend.top_products`."""
        vectors, _, scores = inputs[:3]
        if (
            scores.dtype != torch.float32
            or vectors.dtype not in (torch.float16, torch.float32)
            or vectors.shape[1] % LANES
            or vectors.stride(1) != 1
            or scores.stride(1) != 1
            or not _plain(vectors)
            or (vectors.dtype == torch.float16 and not _loads_halves())
        ):
            return super().top_products(inputs)
        from muse_adapter.ops.numba_cpu.top_vectors import top_products

        return top_products(inputs)

    def mamba_mixer(self, inputs: MixerInputs) -> tuple[Tensor, MixerState | None]:
        """Run a mixer without gradients in slices, see `Backend.mamba_mixer`."""
        tensors = inputs.tensors()
        dtype = inputs.tokens.dtype
        if (
            (inputs.state is not None and inputs.tokens.shape[1] < MIN_SLICED_CHUNK)
            or gradient_wanted(tensors)
            or torch.is_autocast_enabled(inputs.tokens.device.type)
            or dtype not in TYPES
            or any(tensor.dtype != dtype for tensor in tensors)
            or inputs.in_proj.shape[0] % (2 * LANES)
        ):
            return super().mamba_mixer(inputs)
        return mixer_operator.mamba_inference(inputs)


def _reads_rows(inputs: TextGateInputs) -> bool:
    """Whether the kernel for stored tokens serves: their types, without gradients."""
    all_rows = [rows for rows in (inputs.keys, inputs.values) if rows is not None]
    dtypes = {row_kind(rows).dtype for rows in all_rows}
    return (
        dtypes in ({torch.float16}, {torch.int8})
        and inputs.text.dtype == torch.float32
        and not len(inputs.text) % LANES
        and _plain(inputs.text)
        and all(contiguous_rows(rows) for rows in all_rows)
        and not gradient_wanted([*inputs[2:6], *leaves(inputs.keys), *leaves(inputs.values)])
        and (torch.int8 in dtypes or _loads_halves())
    )


def _plain(tensor: Tensor) -> bool:
    """Whether kernels may read it by address, in eager mode and outside of forward mode."""
    return values_can_be_asked(tensor) and not in_forward_mode()


def _loads_halves() -> bool:
    from muse_adapter.ops.numba_cpu.stored import has_half_precision

    return has_half_precision()


NUMBA = NumbaBackend()


@functools.cache
def _load_error() -> str | None:
    try:
        import muse_adapter.ops.numba_cpu.function  # noqa: F401
    except Exception as error:  # an old or broken numba raises whatever it likes
        return f"numba does not load ({error}): pip install --upgrade 'muse-adapter[cpu]'"
    return None
