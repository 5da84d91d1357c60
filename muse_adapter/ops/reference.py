"""The selective scan as its definition reads: one step after the other, gradients by autograd.

Every other backend is compared with this one, on outputs and all gradients. It keeps the states of
all steps for the backward pass, so its memory is that of a (batch, L, E, S) tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

NAME = "reference"


def unavailable(device: torch.device | None = None) -> str | None:
    """The definition runs wherever torch runs."""
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
    """Run `h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t`, `y_t = <C_t, h_t> + D x_t` (Mamba, eq. 2).

    Args and returns are those of the backend contract in `muse_adapter.ops.dispatch`.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, B, C = discretise(x, delta, B, C, delta_bias, delta_softplus, lengths, dtype)
    A = A.to(dtype).unflatten(0, (B.shape[2], -1))  # (G, E/G, S)

    B, C = (matrix.expand(-1, x.shape[1], -1, -1) for matrix in (B, C))
    steps = list(zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True))
    state = A.new_zeros(x.shape[0], *A.shape)
    outputs = []
    for x_t, dt_t, B_t, C_t in reversed(steps) if reverse else steps:
        drive = (dt_t * x_t).unsqueeze(-1) * B_t.unsqueeze(-2)
        state = torch.exp(dt_t.unsqueeze(-1) * A) * state + drive
        outputs.append((state * C_t.unsqueeze(-2)).sum(-1))
    y = (
        torch.stack(outputs[::-1] if reverse else outputs, dim=1)
        if outputs
        else torch.zeros_like(x)
    )
    return skip(y, x, D), state.flatten(1, 2)


def discretise(
    x: Tensor,
    delta: Tensor,
    B: Tensor,
    C: Tensor,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Bring the inputs to the state's type, channels into their groups, and step sizes to `dt`.

    Behind `lengths` everything becomes zero: a step of size zero leaves the state as it is, and an
    input of zero (by `where`, since 0 * NaN is NaN) neither reads nor writes anything.

    Returns:
        x, dt: (batch, L, G, E/G); B, C: (batch or 1, L or 1, G, S), all of type `dtype`.
    """
    groups = math.lcm(B.shape[2], C.shape[2])
    B = B.repeat_interleave(groups // B.shape[2], dim=2) if B.shape[2] != groups else B
    C = C.repeat_interleave(groups // C.shape[2], dim=2) if C.shape[2] != groups else C
    x, delta, B, C = x.to(dtype), delta.to(dtype), B.to(dtype), C.to(dtype)
    valid = valid_positions(lengths, x)
    if valid is not None:
        x, delta = torch.where(valid, x, 0), torch.where(valid, delta, 0)
        B, C = (torch.where(valid.unsqueeze(-1), matrix, 0) for matrix in (B, C))
    dt = delta if delta_bias is None else delta + delta_bias.to(dtype)
    if delta_softplus:
        dt = F.softplus(dt)
    if valid is not None:
        dt = torch.where(valid, dt, 0)
    x, dt = x.unflatten(-1, (groups, -1)), dt.unflatten(-1, (groups, -1))
    return x, dt, B, C


def valid_positions(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Which positions of x (batch, L, ...) stand before `lengths`: (batch, L, 1), or None: all."""
    if lengths is None:
        return None
    positions = torch.arange(x.shape[1], device=x.device)
    return (positions < lengths.unsqueeze(-1)).unsqueeze(-1)


def skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """Add the skip connection D x and merge the groups: (batch, L, G, E/G) -> (batch, L, E)."""
    y = y.flatten(2)
    return y if D is None else y + D.to(y.dtype) * x.flatten(2)
