"""The scan as `torch.onnx.export` translates it: an ONNX Scan over videos and time.

While a graph is traced for ONNX, this takes the place of every backend, since runtimes have none of
their kernels; everything around the scan is plain torch. A step costs a runtime some microseconds
for each operator, and more where tensors of the state's size leave the cache. So videos run one
after the other, both directions are rows of one state, a matrix product adds a step's input to the
state, and a turn of the loop takes several steps.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.reference import add_skip, discretise, first_state
from muse_adapter.ops.torch_private import scan_operator

# Steps in a turn of the loop over time.
CHUNK = 8


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


ONNX = OnnxBackend()


def exporting_to_onnx() -> bool:
    """Whether the present call is traced for ONNX."""
    # Asking torch.onnx imports the exporter, which only an export has a use for.
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def _scans(scans: list[ScanInputs]) -> tuple[list[Tensor], list[Tensor]]:
    """Run scans of one shape side by side.

    The channels of a group of one scan are a row; there are n rows of K channels.

    Args:
        scans: The inputs, alike in all but their values and `reverse`.

    Returns:
        Outputs (batch, L, E) and last states (batch, E, S) of each.
    """
    batch, length, _ = scans[0].x.shape
    given = [discretise(scan) for scan in scans]
    inputs: list[list[Tensor]] = [[], [], [], []]
    for scan, (x, dt, _, B, C) in zip(scans, given, strict=True):
        for rows, tensor in zip(inputs, (dt * x, dt, B, C), strict=True):
            tensor = tensor.expand(batch, length, -1, -1)
            rows.append(tensor.flip(1) if scan.reverse else tensor)
    A = torch.cat([A for _, _, A, _, _ in given]).transpose(1, 2)  # (n, S, K)
    starts = [first_state(scan, A) for scan, (_, _, A, _, _) in zip(scans, given, strict=True)]
    chunks = _chunks(*(torch.cat(rows, dim=2) for rows in inputs))
    turns = chunks[0].shape[1]
    video = torch.arange(batch, device=A.device).unsqueeze(1).expand(-1, turns)
    first = torch.arange(turns, device=A.device).expand(batch, -1) == 0
    turn_inputs = video.unsqueeze(2), first[..., None, None], *chunks
    loop = [tensor.flatten(0, 1) for tensor in turn_inputs]
    start = torch.cat(starts, dim=1).transpose(2, 3).flatten(1, 2)  # (batch, n * S, K)
    _, y, states = scan_operator(_turn, [A.new_zeros(A.shape).flatten(0, 1)], loop, [start, A])
    rows = len(scans), given[0][0].shape[2]
    last = states.unflatten(0, (batch, turns))[:, -1].unflatten(1, (*rows, -1)).transpose(3, 4)
    y = y.unflatten(0, (batch, turns)).flatten(1, 2).unflatten(1, (-1, *rows))[:, :length]
    outputs = []
    for scan, (x, *_), of_scan in zip(scans, given, y.unbind(2), strict=True):
        of_scan = of_scan.flip(1) if scan.reverse else of_scan
        outputs.append(add_skip(of_scan, x, scan.D))
    return outputs, [state.flatten(1, 2) for state in last.unbind(1)]


def _chunks(dt_x: Tensor, dt: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, ...]:
    """Split time into chunks, in the shapes of `_turn` behind (batch, L / CHUNK).

    Args:
        dt_x: (batch, L, n, K).
        dt: As `dt_x`.
        B: (batch, L, n, S).
        C: As `B`.
    """
    rows = torch.eye(dt.shape[2], device=dt.device)
    B = B.unsqueeze(-1) * rows.unsqueeze(1)  # (batch, L, n, S, n)
    C = C.unsqueeze(2) * rows.unsqueeze(-1)  # (batch, L, n, n, S)
    in_two_axes = dt_x, dt.unsqueeze(3), B.flatten(2, 3), C.flatten(3)
    chunks = []
    for tensor in in_two_axes:
        # Steps of size zero fill the last chunk; they change no state.
        padding = [0, 0] * (tensor.dim() - 2) + [0, -tensor.shape[1] % CHUNK]
        chunks.append(F.pad(tensor, padding).unflatten(1, (-1, CHUNK)).flatten(2, 3))
    return tuple(chunks)


def _turn(
    state: Tensor,
    video: Tensor,
    first: Tensor,
    dt_x: Tensor,
    dt: Tensor,
    B: Tensor,
    C: Tensor,
    start: Tensor,
    A: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Do the steps of a chunk of a video.

    Args:
        state: (n * S, K), behind the last turn. Channels stand last: neighbouring numbers then meet
            the same operation with as many neighbours.
        video: (1,) which one it is.
        first: (1, 1) bool, whether its time begins.
        dt_x: (CHUNK * n, K).
        dt: (CHUNK * n, 1, K).
        B: (CHUNK * n * S, n): a step's B of all rows on the diagonal of blocks.
        C: (CHUNK * n, n * S), likewise.
        start: (batch, n * S, K), the state of each video before its first step.
        A: (n, S, K).

    Returns:
        The state, the outputs (CHUNK * n, K), and the state again.
    """
    state = torch.where(first, start.index_select(0, video).squeeze(0), state)
    rows, states, _ = A.shape
    steps = dt_x.split(rows), dt.split(rows), B.split(rows * states), C.split(rows)
    outputs = []
    for dt_x_t, dt_t, B_t, C_t in zip(*steps, strict=True):
        decay = torch.exp(dt_t * A).flatten(0, 1)
        state = torch.addmm(decay * state, B_t, dt_x_t)
        outputs.append(C_t @ state)
    # Torch refuses a result that may be an input or another result.
    return state.clone(), torch.cat(outputs), state.clone()
