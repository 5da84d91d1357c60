"""The scan and the mixer as `torch.onnx.export` translates them: an ONNX Scan over chunks of time.

While a graph is traced for ONNX, this takes the place of every backend, since runtimes have none of
their kernels. The loop of an ONNX Scan costs some microseconds a turn, so that a turn takes several
steps, and both directions run in one loop. Around it a runtime reads and writes memory at every
operator, so that there are few of them, and of those that only move numbers as few as can be.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.autocast import without_autocast
from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import ScanInputs, state_dtype
from muse_adapter.ops.mixer_inputs import MambaDirection, MixerInputs, MixerState, select
from muse_adapter.ops.reference import add_skip, discretise, first_state
from muse_adapter.ops.torch_private import scan_operator

# Steps in a turn of the loop.
CHUNK = 8
# exp of the one is 0, of the other finite in float32; softplus of more is the number itself.
MIN_EXPONENT, MAX_EXPONENT = -800.0, 80.0


class OnnxBackend(Backend):
    """What is traced for ONNX; nothing runs on it, and nobody chooses it by name."""

    name = "onnx"

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Scan in one direction, see `Backend.scan`."""
        length = inputs.x.shape[1]
        x, dt, A, B, C = discretise(_with_step_sizes(inputs))
        inputs_in_time = []
        for tensor in (dt, dt * x, B, C):
            tensor = tensor.expand(-1, length, -1, -1).transpose(0, 1)
            tensor = tensor.flip(0) if inputs.reverse else tensor
            inputs_in_time.append(_padded(tensor, 0).unsqueeze(1))
        state = first_state(inputs, A).transpose(2, 3).unsqueeze(0)
        y, state = _loop(inputs_in_time, A.transpose(1, 2)[None, None], state)
        y = y[:length, 0].transpose(0, 1)
        y = y.flip(1) if inputs.reverse else y
        return add_skip(y, x, inputs.D), state.squeeze(0).transpose(2, 3).flatten(1, 2)

    def mamba_mixer(self, inputs: MixerInputs) -> tuple[Tensor, MixerState | None]:
        """Run a Mamba mixer up to its gated output, see `Backend.mamba_mixer`."""
        if inputs.state is not None:
            return super().mamba_mixer(inputs)
        tokens, positions, length = inputs.tokens, inputs.positions, inputs.tokens.shape[1]
        places = torch.arange(length, device=tokens.device).unsqueeze(0)
        valid = places < (length if inputs.lengths is None else inputs.lengths.unsqueeze(1))
        if inputs.lengths is not None:
            # What is made of zeros is finite: further on a product with zero is enough of a mask.
            tokens = torch.where(valid.unsqueeze(-1), tokens, 0)
        weight_x, weight_z = inputs.in_proj.chunk(2)
        x = F.linear(tokens, weight_x)
        z = F.linear(tokens if positions is None else select(tokens, positions), weight_z)
        directions = list(enumerate(inputs.directions))
        if positions is None:
            y = _convolve_and_scan(x, valid, directions)[:, :length]
        else:
            # Nothing behind the last wanted token reaches it in the forward direction.
            ends = inputs.end, length
            first, *rest = (
                select(_convolve_and_scan(x[:, :end], valid[:, :end], [direction]), positions)
                for end, direction in zip(ends, directions, strict=False)
            )
            y = first + rest[0] if rest else first
        return self.gate(y, z, None), None


ONNX = OnnxBackend()


def exporting_to_onnx() -> bool:
    """Whether the present call is traced for ONNX."""
    # Asking torch.onnx imports the exporter, which only an export has a use for.
    return torch.compiler.is_compiling() and torch.onnx.is_in_onnx_export()


def _convolve_and_scan(
    x: Tensor, valid: Tensor, directions: list[tuple[int, MambaDirection]]
) -> Tensor:
    """Run the directions of a mixer side by side, in one loop, and sum them.

    Args:
        x: (batch, L, E), finite also where it is not valid.
        valid: (batch or 1, L), bool.
        directions: Weights of each direction, behind 1 for the reverse one, 0 for the other.

    Returns:
        (batch, at least L, E) in the type of the state; arbitrary, but finite, where not valid.
    """
    dtype = state_dtype(x)
    x = _padded(x, 1)
    valid = _padded(valid.T.unsqueeze(-1).to(dtype), 0)  # (L, batch or 1, 1)
    maps = x.transpose(1, 2).unsqueeze(2)  # (batch, E, 1, L)
    convolved, loops = [], []
    for reverse, weights in directions:
        x = _convolve(maps, weights.conv, weights.conv_bias, reverse)
        states = weights.A.shape[1]
        sizes = weights.dt_proj.shape[1], states, states
        low_rank, B, C = F.linear(x, weights.x_proj).split(sizes, dim=-1)
        dt = F.linear(low_rank, weights.dt_proj).to(dtype) + weights.dt_bias.to(dtype)
        # Nothing enters the state at a token that is not valid. That it decays there (A is
        # negative) is seen by no valid token: the state is 0 ahead of them in one direction, and
        # unused behind them in the other.
        B = B * (valid.flip(0) if reverse else valid)
        x, dt = x.to(dtype), _softplus(dt)
        convolved.append(x)
        loops.append([tensor.to(dtype).unsqueeze(2) for tensor in (dt, dt * x, B, C)])
    stacked = [torch.stack(tensors, dim=1) for tensors in zip(*loops, strict=True)]
    A = torch.stack([weights.A.to(dtype).T for _, weights in directions])[:, None, None]
    state = A.new_zeros(A.shape[0], x.shape[1], *A.shape[2:])
    with without_autocast(x.device.type):
        y, _ = _loop(stacked, A, state)
    total = None
    for (reverse, weights), x, of_one in zip(directions, convolved, y.unbind(1), strict=True):
        of_one = of_one.squeeze(2) + weights.D.to(dtype) * x
        of_one = of_one.flip(0) if reverse else of_one
        total = of_one if total is None else total + of_one
    assert total is not None
    return total.transpose(0, 1)


def _convolve(maps: Tensor, weight: Tensor, bias: Tensor, reverse: int) -> Tensor:
    """Convolve in one direction and apply SiLU.

    Args:
        maps: (batch, E, 1, L).
        weight: (E, 1, taps).
        bias: (E,).
        reverse: Whether the taps meet later tokens.

    Returns:
        (L, batch, E) in the order of the direction's time.
    """
    border = weight.shape[-1] - 1
    padded = F.pad(maps, (0, border) if reverse else (border, 0))
    weight = (weight.flip(-1) if reverse else weight).unsqueeze(2).to(maps.dtype)
    with without_autocast(maps.device.type):
        y = F.conv2d(padded, weight, bias.to(maps.dtype), groups=maps.shape[1])
    y = y.squeeze(2).permute(2, 0, 1)
    return F.silu(y.flip(0) if reverse else y)


def _loop(inputs: list[Tensor], A: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Run scans of one shape side by side.

    Args:
        inputs: dt and dt x (L, scans, batch, G, K), B and C (L, scans, batch or 1, G, S), in the
            order of each scan's time; L is a multiple of `CHUNK`.
        A: (scans, 1, G, S, K).
        state: (scans, batch, G, S, K), before the first step. Channels stand last: neighbouring
            numbers then meet the same operation with as many neighbours.

    Returns:
        Outputs (L, scans, batch, G, K), without the skip connection, and the last state.
    """
    # In the shapes that are multiplied: to reshape in the loop takes time in each turn.
    dt, dt_x, B, C = inputs
    shaped = dt.unsqueeze(4), dt_x.unsqueeze(4), B.unsqueeze(5), C.unsqueeze(4)
    chunks = [tensor.unflatten(0, (-1, CHUNK)) for tensor in shaped]
    state, y = scan_operator(_turn, [state], chunks, [A])
    return y.flatten(0, 1).squeeze(4), state


def _turn(
    state: Tensor, dt: Tensor, dt_x: Tensor, B: Tensor, C: Tensor, A: Tensor
) -> tuple[Tensor, Tensor]:
    """Do the steps of a chunk.

    Args:
        state: As in `_loop`.
        dt: (CHUNK, scans, batch, G, 1, K).
        dt_x: As `dt`.
        B: (CHUNK, scans, batch or 1, G, S, 1).
        C: (CHUNK, scans, batch or 1, G, 1, S).
        A: As in `_loop`.

    Returns:
        The state behind them, and the outputs (CHUNK, scans, batch, G, 1, K).
    """
    state, outputs = state.unsqueeze(0), []
    steps = (tensor.split(1) for tensor in (dt, dt_x, B, C))
    # Nothing of a state's size is made for all steps at once: it would leave the cache.
    for dt_t, dt_x_t, B_t, C_t in zip(*steps, strict=True):
        # An outer product: onnxruntime's matrix product takes less time for it than its product by
        # broadcasting does.
        state = (dt_t * A).exp() * state + B_t @ dt_x_t
        outputs.append(C_t @ state)
    # Neither may be a view of something else in the body of the loop.
    return state.squeeze(0).clone(), torch.cat(outputs)


def _padded(tensor: Tensor, dim: int) -> Tensor:
    """Append zeros, up to a multiple of `CHUNK`.

    They are steps of size zero in a scan, and tokens that are not valid in a mixer.
    """
    behind = tensor.dim() - 1 - dim
    return F.pad(tensor, (0, 0) * behind + (0, -tensor.shape[dim] % CHUNK))


def _softplus(x: Tensor) -> Tensor:
    """Compute log(1 + exp(x)), as exactly as torch.

    Runtimes have Softplus, but onnxruntime's is a loop without vectors, three times as slow as
    this. The rounding of 1 + exp(x) would lose the last digits of a small result; they are put
    back.
    """
    # With one bound alone it is exported as a Min, which takes onnxruntime three times as long.
    exponential = x.clamp(MIN_EXPONENT, MAX_EXPONENT).exp()
    rounded = exponential + 1
    lost = exponential - (rounded - 1)
    return torch.maximum(rounded.log() + lost / rounded, x)


def _with_step_sizes(scan: ScanInputs) -> ScanInputs:
    """Pass the step sizes through softplus where that is asked for."""
    if not scan.delta_softplus:
        return scan
    delta = scan.delta.to(state_dtype(scan.x))
    delta = delta if scan.delta_bias is None else delta + scan.delta_bias.to(delta.dtype)
    return scan._replace(delta=_softplus(delta), delta_bias=None, delta_softplus=False)
