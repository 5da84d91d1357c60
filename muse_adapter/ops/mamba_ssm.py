"""The CUDA kernels of mamba-ssm and causal-conv1d, where both packages and extensions really load.

They know one direction, float32 and half precision, and no lengths. So time is flipped for the
other direction, and what stands behind a length gets a step of size zero. Everything is handed over
in float32, since they round their results to the type of their inputs.

mamba-ssm has no gradient of the last state. Where one may be wanted, S more steps of size zero
follow, whose outputs are the S states.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import ScanInputs, gradient_wanted
from muse_adapter.ops.reference import valid_positions

INSTALL = "pip install --no-build-isolation 'muse-adapter[mamba]'"
CHUNK = 64  # steps whose response to an initial state is in memory at once


class MambaSsmBackend(Backend):
    """Upstream's kernels."""

    name = "mamba_ssm"

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """See `Backend.unavailable`."""
        if device is not None and device.type != "cuda":
            return f"runs on GPUs only, got {device}: move the tensors to one"
        if importlib.util.find_spec("mamba_ssm") is None:
            return f"mamba_ssm is not installed: with a CUDA compiler, {INSTALL}"
        if not torch.cuda.is_available():
            return "torch finds no GPU: install torch with CUDA, on a machine that has one"
        return _scan_error()

    def automatic(self, device: torch.device) -> bool:
        """Return False: it runs by name only."""
        return False

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Scan in one direction, see `Backend.scan`.

        Raises:
            TypeError: float64, which the kernels do not have.
        """
        if inputs.x.dtype == torch.float64:
            raise TypeError(
                "mamba-ssm has no float64 kernels, got a float64 x: use another backend"
            )
        return _scan(inputs)

    def causal_conv1d_silu(
        self, x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
    ) -> tuple[Tensor, ...]:
        """Convolve by causal-conv1d where it loads and has the kernel."""
        taps = weights[0][0].shape[-1]
        if x.dtype == torch.float64 or not 2 <= taps <= 4 or _convolution_error() is not None:
            return super().causal_conv1d_silu(x, weights, end)
        from causal_conv1d import causal_conv1d_fn

        results = []
        for index, (weight, bias) in enumerate(weights):
            y = causal_conv1d_fn(
                x=(x.flip(1) if index else x[:, :end]).transpose(1, 2).contiguous(),
                weight=weight.squeeze(1).to(x.dtype).contiguous(),
                bias=bias.to(x.dtype).contiguous(),
                activation="silu",
            ).transpose(1, 2)
            results.append(y.flip(1) if index else y)
        return tuple(results)


MAMBA_SSM = MambaSsmBackend()


@functools.cache
def _scan_error() -> str | None:
    """Why mamba-ssm's scan does not load; its package and its extension are two questions."""
    return _error(
        *("mamba_ssm.ops.selective_scan_interface", "selective_scan_fn", "selective_scan_cuda"),
        hint=f"build it again with MAMBA_KEEP_CUDA_BUILD=TRUE MAMBA_FORCE_BUILD=TRUE, {INSTALL}",
    )


@functools.cache
def _convolution_error() -> str | None:
    """Why causal-conv1d does not load."""
    return _error(
        *("causal_conv1d", "causal_conv1d_fn", "causal_conv1d_cuda"),
        hint=f"build it again with CAUSAL_CONV1D_FORCE_BUILD=TRUE, {INSTALL}",
    )


def _error(package: str, function: str, extension: str, *, hint: str) -> str | None:
    # Extensions first: some versions of the packages raise without them, others do not look.
    for name, attribute in ((extension, None), (package, function)):
        try:
            module = importlib.import_module(name)
        except Exception as error:  # a broken build raises whatever it likes
            return f"{name} does not load ({error}): {hint}"
        if attribute is not None and not callable(getattr(module, attribute, None)):
            return f"{name} has no function {attribute}: {hint}"
    return None


def _scan(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    batch, length, channels = inputs.x.shape
    tracked = gradient_wanted(inputs.differentiable())
    x, delta, A, B, C = (tensor.float() for tensor in inputs[:5])
    D, bias = (
        None if row is None else row.float().contiguous() for row in (inputs.D, inputs.delta_bias)
    )
    softplus = inputs.delta_softplus
    if bias is not None and not softplus:
        delta, bias = delta + bias, None
    # A step of size zero leaves the state as it is.
    no_step = delta.new_full((channels,), -math.inf if softplus else 0.0)
    B, C = (
        matrix if _constant(matrix, channels) else matrix.expand(batch, length, -1, -1)
        for matrix in (B, C)
    )
    if tracked and _constant(C, channels):
        C = C.expand(batch, length, -1, -1)
    B, C = _same_groups(B, C, batch, length, channels)
    varying = [not _constant(matrix, channels) for matrix in (B, C)]

    valid = valid_positions(inputs.lengths, x)
    if valid is not None:
        x, delta = torch.where(valid, x, 0), torch.where(valid, delta, no_step)
        B, C = (
            torch.where(valid.unsqueeze(-1), matrix, 0) if varies else matrix
            for matrix, varies in zip((B, C), varying, strict=True)
        )
    if inputs.reverse:
        x, delta = x.flip(1), delta.flip(1)
        B, C = (m.flip(1) if varies else m for m, varies in zip((B, C), varying, strict=True))
    response = None
    if inputs.initial_state is not None:
        dt = delta if bias is None else delta + bias
        response = _response(F.softplus(dt) if softplus else dt, A, C, inputs.initial_state.float())
    if tracked:
        states = A.shape[1]
        x = F.pad(x, (0, 0, 0, states))
        delta = torch.cat([delta, no_step.expand(batch, states, -1)], dim=1)
        B = F.pad(B, (0, 0, 0, 0, 0, states)) if varying[0] else B
        unit = torch.eye(states, device=x.device)[None, :, None]
        C = torch.cat([C, unit.expand(batch, -1, C.shape[2], -1)], dim=1)
    y, state = selective_scan_fn(
        u=x.transpose(1, 2).contiguous(),
        delta=delta.transpose(1, 2).contiguous(),
        A=A.contiguous(),
        B=_time_last(B, varying[0]),
        C=_time_last(C, varying[1]),
        D=D,
        z=None,
        delta_bias=bias,
        delta_softplus=softplus,
        return_last_state=True,
    )
    y = y.transpose(1, 2)
    if tracked:
        y, state = y[:, :length], y[:, length:].transpose(1, 2)
    if response is not None:  # the scan is linear in its inputs and its initial state
        y, state = y + response[0], state + response[1]
    y = y.flip(1) if inputs.reverse else y
    return (y if valid is None else torch.where(valid, y, 0)), state


def _response(dt: Tensor, A: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what an initial state alone gives: <C_t, exp(A sum of dt) h>, and the last state.

    Args:
        dt: (batch, L, E), in the order of time.
        A: (E, S).
        C: (batch, L, G, S) or (1, 1, E, S).
        state: (batch, E, S).
    """
    parts = []
    for begin in range(0, dt.shape[1], CHUNK):
        part = slice(begin, begin + CHUNK)
        C_part = C if C.shape[1] == 1 else C[:, part]
        # A chunk's states are computed anew in the backward pass, never kept for all steps.
        y, state = checkpoint(
            _response_of_chunk, dt[:, part], A, C_part, state, use_reentrant=False
        )
        parts.append(y)
    return (torch.cat(parts, dim=1) if parts else torch.zeros_like(dt)), state


def _response_of_chunk(dt: Tensor, A: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    decays = torch.exp(dt.cumsum(1).unsqueeze(-1) * A)  # (batch, c, E, S)
    states = (decays * state.unsqueeze(1)).unflatten(2, (C.shape[2], -1))
    return (states * C.unsqueeze(3)).sum(-1).flatten(2), states[:, -1].flatten(1, 2)


def _constant(matrix: Tensor, channels: int) -> bool:
    """Whether B or C is constant in time, (1, 1, E, S)."""
    return matrix.shape[:2] == (1, 1) and matrix.shape[2] == channels


def _same_groups(
    B: Tensor, C: Tensor, batch: int, length: int, channels: int
) -> tuple[Tensor, Tensor]:
    """Bring B and C to a number of groups for which there is a kernel."""
    if _constant(C, channels) or (_constant(B, channels) and C.shape[2] == 1):
        return B, C
    if _constant(B, channels):
        B = B.expand(batch, length, -1, -1)
    groups = math.lcm(B.shape[2], C.shape[2])
    return (
        B.repeat_interleave(groups // B.shape[2], dim=2),
        C.repeat_interleave(groups // C.shape[2], dim=2),
    )


def _time_last(matrix: Tensor, varies: bool) -> Tensor:
    """(batch, L, G, S) -> (batch, G, S, L); (1, 1, E, S), constant in time -> (E, S)."""
    return matrix.permute(0, 2, 3, 1).contiguous() if varies else matrix[0, 0].contiguous()
