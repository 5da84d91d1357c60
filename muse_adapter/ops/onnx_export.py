"""The scan as `torch.onnx.export` translates it: an ONNX Scan over chunks of time.

While a graph is traced for ONNX, this takes the place of every backend, since runtimes have none of
their kernels; everything around the scan is plain torch. The loop of an ONNX Scan costs some
microseconds a turn, so that a turn takes several steps: what does not depend on the state is made
for all of them at once, and both directions run in one loop.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import ScanInputs, state_dtype
from muse_adapter.ops.reference import add_skip, discretise, first_state
from muse_adapter.ops.torch_private import scan_operator

# Steps in a turn of the loop.
CHUNK = 8
# exp of it is finite in float32; softplus of more is the number itself.
MAX_EXPONENT = 80


class OnnxBackend(Backend):
    """What is traced for ONNX; nothing runs on it, and nobody chooses it by name."""

    name = "onnx"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Scan in one direction, see `Backend.scan`."""
        (y,), (state,) = _scans([inputs])
        return y, state

    def bidirectional_scan(
        self,
        forward: ScanInputs,
        reverse: ScanInputs | None,
        z: Tensor,
        positions: Tensor | None,
    ) -> Tensor:
        """Scan both directions in one loop where they are of one length."""
        if reverse is None or positions is not None:
            return super().bidirectional_scan(forward, reverse, z, positions)
        (first, second), _ = _scans([forward, reverse])
        return self.gate(first + second, z, None)

    def causal_conv1d_silu(
        self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
    ) -> tuple[Tensor, ...]:
        """Convolve and apply SiLU with zeros at the one end that each direction reads."""
        maps = x.transpose(1, 2).unsqueeze(2)  # (batch, E, 1, L)
        results = []
        for index, (weight, bias) in enumerate(weights):
            border = weight.shape[-1] - 1
            padded = F.pad(maps, (0, border)) if index else F.pad(maps[..., :end], (border, 0))
            weight = weight.flip(-1) if index else weight
            y = F.conv2d(padded, weight.unsqueeze(2), bias, groups=x.shape[-1])
            results.append(F.silu(y.squeeze(2).transpose(1, 2)))
        return tuple(results)


ONNX = OnnxBackend()


def exporting_to_onnx() -> bool:
    """Whether the present call is traced for ONNX."""
    # Asking torch.onnx imports the exporter, which only an export has a use for.
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def _scans(scans: list[ScanInputs]) -> tuple[list[Tensor], list[Tensor]]:
    """Run scans of one shape side by side.

    Args:
        scans: The inputs, alike in all but their values and `reverse`.

    Returns:
        Outputs (batch, L, E) and last states (batch, E, S) of each.
    """
    length = scans[0].x.shape[1]
    given = [discretise(_with_step_sizes(scan)) for scan in scans]
    inputs, states = [], []
    for scan, (x, dt, A, B, C) in zip(scans, given, strict=True):
        # As the turn multiplies them, (.., S, K): reshaping there would take time in each turn.
        shaped = dt.unsqueeze(3), (dt * x).unsqueeze(3), B.unsqueeze(4), C.unsqueeze(3)
        inputs.append([_chunks(tensor, length, scan.reverse) for tensor in shaped])
        states.append(first_state(scan, A).transpose(2, 3))
    A = torch.stack([A.transpose(1, 2) for _, _, A, _, _ in given]).unsqueeze(1)
    # (L / CHUNK, CHUNK, scans, batch, G, 1 or S, K or 1 or S), in the order of time.
    stacked = [torch.stack(tensors, dim=2) for tensors in zip(*inputs, strict=True)]
    last, y = scan_operator(_turn, [torch.stack(states)], stacked, [A])
    y = y.flatten(0, 1).squeeze(4)  # (L, scans, batch, G, K)
    outputs = []
    for scan, (x, *_), of_scan in zip(scans, given, y.unbind(1), strict=True):
        of_scan = of_scan[:length].transpose(0, 1)
        of_scan = of_scan.flip(1) if scan.reverse else of_scan
        outputs.append(add_skip(of_scan, x, scan.D))
    return outputs, [h.transpose(2, 3).flatten(1, 2) for h in last.unbind(0)]


def _turn(
    state: Tensor, dt: Tensor, dt_x: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the steps of a chunk.

    Args:
        state: (scans, batch, G, S, K), before it. Channels stand last: neighbouring numbers then
            meet the same operation with as many neighbours.
        dt: (CHUNK, scans, batch, G, 1, K).
        dt_x: As `dt`, times x.
        B: (CHUNK, scans, batch or 1, G, S, 1).
        C: (CHUNK, scans, batch or 1, G, 1, S).
        A: (scans, 1, G, S, K).

    Returns:
        The state behind it, and the outputs (CHUNK, scans, batch, G, 1, K).
    """
    state, outputs = state.unsqueeze(0), []
    steps = (tensor.split(1) for tensor in (dt, dt_x, B, C))
    # Step by step, and nothing of a state's size for all steps at once: it would leave the cache.
    for dt_t, dt_x_t, B_t, C_t in zip(*steps, strict=True):
        state = (dt_t * A).exp() * state + dt_x_t * B_t
        outputs.append(C_t @ state)
    # May not be a view of something else in the body of the loop.
    return state.squeeze(0).clone(), torch.cat(outputs)


def _chunks(tensor: Tensor, length: int, reverse: bool) -> Tensor:
    """Split time into chunks: (batch or 1, L or 1, ...) -> (L / CHUNK, CHUNK, batch or 1, ...).

    Steps of size zero fill the last one; they change no state.
    """
    if tensor.shape[1] == 1:
        tensor = tensor.expand(-1, length, *tensor.shape[2:])
    tensor = tensor.transpose(0, 1)
    tensor = tensor.flip(0) if reverse else tensor
    padded = F.pad(tensor, (0, 0) * (tensor.dim() - 1) + (0, -length % CHUNK))
    return padded.unflatten(0, (-1, CHUNK))


def _with_step_sizes(scan: ScanInputs) -> ScanInputs:
    """Pass the step sizes through softplus where that is asked for.

    Softplus is a loop without vectors in onnxruntime, three times as slow as what stands here,
    which is as exact: the logarithm loses the last digits of a small exp(x), and they are put back.
    """
    if not scan.delta_softplus:
        return scan
    delta = scan.delta.to(state_dtype(scan.x))
    delta = delta if scan.delta_bias is None else delta + scan.delta_bias.to(delta.dtype)
    exponential = delta.clamp(max=MAX_EXPONENT).exp()
    rounded = exponential + 1
    lost = exponential - (rounded - 1)
    delta = torch.maximum(rounded.log() + lost / rounded, delta)
    return scan._replace(delta=delta, delta_bias=None, delta_softplus=False)
