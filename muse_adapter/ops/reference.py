"""The selective scan as its definition reads: one step after the other, gradients by autograd.

Every other backend is compared with this one, on outputs and all gradients. It keeps the states of
all steps for the backward pass, so its memory is that of a (batch, L, E, S) tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.backend import Backend
from muse_adapter.ops.inputs import ScanInputs, state_dtype


class ReferenceBackend(Backend):
    """The definition, which runs wherever torch runs."""

    name = "reference"

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """See `Backend.unavailable`."""
        return None

    def scan(self, inputs: ScanInputs) -> tuple[Tensor, Tensor]:
        """Run `h_t = exp(dt_t A) h_{t-1} + dt_t B_t x_t`, `y_t = <C_t, h_t> + D x_t`.

        Mamba's equation 2; arguments and results as in `Backend.scan`.
        """
        x, dt, A, B, C = discretise(inputs)
        B, C = (matrix.expand(-1, x.shape[1], -1, -1) for matrix in (B, C))
        steps = list(zip(x.unbind(1), dt.unbind(1), B.unbind(1), C.unbind(1), strict=True))
        state = first_state(inputs, A)
        outputs = []
        for x_t, dt_t, B_t, C_t in reversed(steps) if inputs.reverse else steps:
            dt_x = dt_t * x_t
            update = dt_x.unsqueeze(-1) * B_t.unsqueeze(-2)
            state = torch.exp(dt_t.unsqueeze(-1) * A) * state + update
            outputs.append((state * C_t.unsqueeze(-2)).sum(-1))
        y = (
            torch.stack(outputs[::-1] if inputs.reverse else outputs, dim=1)
            if outputs
            else torch.zeros_like(x)
        )
        return add_skip(y, x, inputs.D), state.flatten(1, 2)


REFERENCE = ReferenceBackend()


def discretise(inputs: ScanInputs) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Bring inputs to the state's type, channels into their groups, and step sizes to `dt`.

    Behind `lengths` everything becomes zero: a step of size zero leaves the state as it is, and an
    input of zero (by `where`, since 0 * NaN is NaN) neither reads nor writes anything.

    Returns:
        x, dt: (batch, L, G, E/G); A: (G, E/G, S); B, C: (batch or 1, L or 1, G, S).
    """
    dtype = state_dtype(inputs.x)
    x, delta, A, B, C = (
        tensor.to(dtype) for tensor in (inputs.x, inputs.delta, inputs.A, inputs.B, inputs.C)
    )
    groups = math.lcm(B.shape[2], C.shape[2])
    B = B.repeat_interleave(groups // B.shape[2], dim=2) if B.shape[2] != groups else B
    C = C.repeat_interleave(groups // C.shape[2], dim=2) if C.shape[2] != groups else C
    valid = valid_positions(inputs.lengths, x)
    if valid is not None:
        x, delta = torch.where(valid, x, 0), torch.where(valid, delta, 0)
        B, C = (torch.where(valid.unsqueeze(-1), matrix, 0) for matrix in (B, C))
    dt = delta if inputs.delta_bias is None else delta + inputs.delta_bias.to(dtype)
    if inputs.delta_softplus:
        dt = F.softplus(dt)
    if valid is not None:
        dt = torch.where(valid, dt, 0)
    x, dt = x.unflatten(-1, (groups, -1)), dt.unflatten(-1, (groups, -1))
    return x, dt, A.unflatten(0, (groups, -1)), B, C


def first_state(inputs: ScanInputs, A: Tensor) -> Tensor:
    """Return a new tensor of the state before the first step, (batch, G, E/G, S) for that A."""
    if inputs.initial_state is None:
        return A.new_zeros(inputs.x.shape[0], *A.shape)
    return inputs.initial_state.to(A.dtype, copy=True).unflatten(1, A.shape[:2])


def valid_positions(lengths: Tensor | None, x: Tensor) -> Tensor | None:
    """Say which positions of x (batch, L, ...) are valid: (batch, L, 1), or None: all."""
    if lengths is None:
        return None
    positions = torch.arange(x.shape[1], device=x.device)
    return (positions < lengths.unsqueeze(-1)).unsqueeze(-1)


def add_skip(y: Tensor, x: Tensor, D: Tensor | None) -> Tensor:
    """Add the skip connection D x and merge groups: (batch, L, G, E/G) -> (batch, L, E)."""
    y = y.flatten(2)
    return y if D is None else y + D.to(y.dtype) * x.flatten(2)
