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

NAME = "mamba_ssm"
AUTOMATIC = False

INSTALL = "pip install --no-build-isolation 'muse-adapter[mamba]'"


def unavailable(device: torch.device | None = None) -> str | None:
    """Say why this backend cannot run.

    Args:
        device: where the tensors are; None asks about the machine.

    Returns:
        None if it can run, else the reason and what would fix it.
    """
    if device is not None and device.type != "cuda":
        return f"runs on GPUs only, got {device}: move the tensors to one"
    if importlib.util.find_spec("mamba_ssm") is None:
        return f"mamba_ssm is not installed: with a CUDA compiler, {INSTALL}"
    if not torch.cuda.is_available():
        return "torch finds no GPU: install torch with CUDA, on a machine that has one"
    return _scan_error()


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
    """Run one direction; args and returns are those of the contract in `dispatch`.

    Raises:
        TypeError: float64, which the kernels do not have.
    """
    if x.dtype == torch.float64:
        raise TypeError("mamba-ssm has no float64 kernels, got a float64 x: use another backend")
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    batch, length, channels = x.shape
    tensors = [tensor for tensor in (x, delta, A, B, C, D, delta_bias) if tensor is not None]
    tracked = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    x, delta, A, B, C = (tensor.float() for tensor in (x, delta, A, B, C))
    D, delta_bias = (None if v is None else v.float().contiguous() for v in (D, delta_bias))
    if delta_bias is not None and not delta_softplus:
        delta, delta_bias = delta + delta_bias, None
    # A step of size zero leaves the state as it is.
    no_step = delta.new_full((channels,), -math.inf if delta_softplus else 0.0)
    if tracked and _constant(C, channels):
        C = C.expand(batch, length, -1, -1)
    B, C = _same_groups(B, C, batch, length, channels)
    varying = [not _constant(gain, channels) for gain in (B, C)]

    if lengths is not None:
        valid = (torch.arange(length, device=x.device) < lengths.unsqueeze(1)).unsqueeze(-1)
        x, delta = torch.where(valid, x, 0), torch.where(valid, delta, no_step)
        B, C = (
            torch.where(valid.unsqueeze(-1), gain, 0) if varies else gain
            for gain, varies in zip((B, C), varying, strict=True)
        )
    if reverse:
        x, delta = x.flip(1), delta.flip(1)
        B, C = (gain.flip(1) if v else gain for gain, v in zip((B, C), varying, strict=True))
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
        delta_bias=delta_bias,
        delta_softplus=delta_softplus,
        return_last_state=True,
    )
    y = y.transpose(1, 2)
    if tracked:
        y, state = y[:, :length], y[:, length:].transpose(1, 2)
    y = y.flip(1) if reverse else y
    return (y if lengths is None else torch.where(valid, y, 0)), state


def causal_conv1d_silu(
    x: Tensor, weights: Sequence[tuple[Tensor, Tensor]], end: int
) -> tuple[Tensor, ...]:
    """SiLU of the convolutions, by causal-conv1d where it loads and has the kernel."""
    from muse_adapter.ops.convolution import convolve_in_turn

    taps = weights[0][0].shape[-1]
    if x.dtype == torch.float64 or not 2 <= taps <= 4 or _convolution_error() is not None:
        return convolve_in_turn(x, weights, end)
    from causal_conv1d import causal_conv1d_fn

    results = []
    for ahead, (weight, bias) in enumerate(weights):
        y = causal_conv1d_fn(
            x=(x.flip(1) if ahead else x[:, :end]).transpose(1, 2).contiguous(),
            weight=weight.squeeze(1).to(x.dtype).contiguous(),
            bias=bias.to(x.dtype).contiguous(),
            activation="silu",
        ).transpose(1, 2)
        results.append(y.flip(1) if ahead else y)
    return tuple(results)


def _constant(gain: Tensor, channels: int) -> bool:
    """Whether B or C is constant in time, (1, 1, E, S)."""
    return gain.shape[:2] == (1, 1) and gain.shape[2] == channels


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


def _time_last(gain: Tensor, varies: bool) -> Tensor:
    """(batch, L, G, S) -> (batch, G, S, L); (1, 1, E, S), constant in time -> (E, S)."""
    return gain.permute(0, 2, 3, 1).contiguous() if varies else gain[0, 0].contiguous()
