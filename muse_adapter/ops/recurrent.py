"""The selective scan in plain torch: chunks of time, one fused operation a step.

Within a chunk all exponentials and products are made at once and only the recurrence itself walks
through time, in place. The forward pass keeps the state at the start of each chunk; the backward
pass recomputes the others, so that no (batch, L, E, S) tensor ever exists.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from muse_adapter.ops.reference import discretise, skip

NAME = "torch"

# Elements of a chunk's state tensor: large enough to hide the cost of a torch call, small enough
# for the cache.
CHUNK_ELEMENTS = 1 << 19


def unavailable(device: torch.device | None = None) -> str | None:
    """Plain torch runs wherever torch runs."""
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
    """Run the scan; args and returns are those of the contract in `muse_adapter.ops.dispatch`."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, dt, B, C = discretise(x, delta, B, C, delta_bias, delta_softplus, lengths, dtype)
    A = A.to(dtype).unflatten(0, (B.shape[2], -1))  # (G, E/G, S)
    # Channels side by side: `selective_scan` comes with time innermost, four times slower below.
    x, dt, B, C = (tensor.contiguous() for tensor in (x, dt, B, C))
    y, state = _Recurrence.apply(x, dt, A, B, C, reverse)
    return skip(y, x, D), state.flatten(1, 2)


class _Recurrence(torch.autograd.Function):
    """y_t = <C_t, h_t> with h_t = exp(dt_t A) h_{t-1} + dt_t x_t B_t, and the last state.

    x, dt (batch, L, G, K); A (G, K, S); B, C (batch, L, G, S) or (1, 1, G, S), constant in time
    -> y (batch, L, G, K), h (batch, G, K, S).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, reverse: bool
    ) -> tuple[Tensor, Tensor]:
        chunks = _chunks(x.shape[1], x.shape[0] * A.numel(), reverse)
        state = A.new_zeros(x.shape[0], *A.shape)
        starts = A.new_empty(len(chunks), *state.shape)
        y = torch.empty_like(x)
        with torch.autocast(x.device.type, enabled=False):
            for index, part in enumerate(chunks):
                starts[index] = state
                _, states = _states(x[:, part], dt[:, part], A, _part(B, part), state, reverse)
                after = states[:-1] if reverse else states[1:]
                C_part = _part(C, part).transpose(0, 1).unsqueeze(-1)
                y[:, part] = (after @ C_part).squeeze(-1).transpose(0, 1)
                state = states[0 if reverse else -1].clone()
        ctx.save_for_backward(x, dt, A, B, C, starts)
        ctx.reverse = reverse
        return y, state

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor, grad_state: Tensor) -> tuple[Tensor | None, ...]:
        return *_Gradients.apply(grad_y, grad_state, *ctx.saved_tensors, ctx.reverse), None


class _Gradients(torch.autograd.Function):
    """The backward pass as a function of its own, so that a derivative of it is refused by name.

    `once_differentiable` refuses only where grad_y has a gradient, and elsewhere drops it silently.
    """

    @staticmethod
    def forward(
        ctx: Any,
        grad_y: Tensor,
        grad_state: Tensor,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        starts: Tensor,
        reverse: bool,
    ) -> tuple[Tensor, ...]:
        chunks = _chunks(x.shape[1], x.shape[0] * A.numel(), reverse)
        grad_x, grad_dt = torch.empty_like(x), torch.empty_like(dt)
        grad_B, grad_C = torch.zeros_like(B), torch.zeros_like(C)
        grad_A = torch.zeros_like(A)
        carry = grad_state.clone()  # gradient of the state that leaves the chunk
        with torch.autocast(x.device.type, enabled=False):
            for start, part in zip(starts.flip(0), reversed(chunks), strict=True):
                x_part, dt_part = x[:, part].transpose(0, 1), dt[:, part].transpose(0, 1)
                B_part, C_part = _part(B, part).transpose(0, 1), _part(C, part).transpose(0, 1)
                grad_part = grad_y[:, part].transpose(0, 1)
                decay, states = _states(x[:, part], dt[:, part], A, _part(B, part), start, reverse)
                after, before = (states[:-1], states[1:]) if reverse else (states[1:], states[:-1])

                grad = grad_part.unsqueeze(-1) * C_part.unsqueeze(
                    -2
                )  # of each state, (c, batch, G, K, S)
                order = list(zip(grad.unbind(0), decay.unbind(0), strict=True))
                for grad_t, decay_t in order if reverse else reversed(order):
                    grad_t += carry
                    torch.mul(grad_t, decay_t, out=carry)

                _add_part(grad_C, part, _channel_sum(grad_part, after))
                _add_part(grad_B, part, _channel_sum(dt_part * x_part, grad))
                grad_drive = (grad @ B_part.unsqueeze(-1)).squeeze(-1)
                grad_x[:, part] = (grad_drive * dt_part).transpose(0, 1)
                grad.mul_(decay).mul_(before)  # now the gradient of dt_t A
                grad_A += torch.mul(grad, dt_part.unsqueeze(-1), out=decay).sum((0, 1))
                from_decay = grad.mul_(A).sum(-1)
                grad_dt[:, part] = from_decay.addcmul_(grad_drive, x_part).transpose(0, 1)
        return grad_x, grad_dt, grad_A, grad_B, grad_C

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError(
            "the torch backend of the scan has no second derivative: use backend='reference'"
        )


def _states(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, start: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """Decays (c, batch, G, K, S) and states (c + 1, batch, G, K, S) of a chunk.

    The states stand in the order of time: `start` first, or last when time runs backwards.
    """
    x, dt, B = x.transpose(0, 1), dt.transpose(0, 1), B.transpose(0, 1)
    decay = torch.mul(dt.unsqueeze(-1), A).exp_()
    states = decay.new_empty(len(decay) + 1, *decay.shape[1:])
    states[-1 if reverse else 0] = start
    after = states[:-1] if reverse else states[1:]
    torch.mul((dt * x).unsqueeze(-1), B.unsqueeze(-2), out=after)
    steps = list(zip(after.unbind(0), decay.unbind(0), strict=True))
    state = start
    for state_t, decay_t in reversed(steps) if reverse else steps:
        state = state_t.addcmul_(decay_t, state)
    return decay, states


def _channel_sum(weights: Tensor, states: Tensor) -> Tensor:
    """Sum over a group's channels: (c, batch, G, K) and (c, batch, G, K, S) -> (c, batch, G, S)."""
    return (weights.unsqueeze(-2) @ states).squeeze(-2)


def _part(tensor: Tensor, part: slice) -> Tensor:
    """The chunk's part of B or C: all of it where it is constant in time."""
    return tensor if tensor.shape[1] == 1 else tensor[:, part]


def _add_part(grad: Tensor, part: slice, value: Tensor) -> None:
    """Add a chunk's gradient (c, batch, G, S), summed over what B or C is constant in."""
    target = _part(grad, part)
    target += value.transpose(0, 1).sum_to_size(target.shape)


def _chunks(length: int, state_elements: int, reverse: bool) -> list[slice]:
    """Slices of time in the order of the scan; stored states are never more than a chunk's own."""
    size = max(math.isqrt(length - 1) + 1, CHUNK_ELEMENTS // max(state_elements, 1), 1)
    chunks = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    return chunks[::-1] if reverse else chunks
