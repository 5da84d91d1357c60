"""The selective scan in plain torch: chunks of time, one fused operation a step.

Within a chunk all exponentials and products are made at once and only the recurrence itself walks
through time, in place. The forward pass saves the state at the start of each chunk; the backward
pass recomputes the others, so that no (batch, L, E, S) tensor ever exists.
"""

from __future__ import annotations

import torch
from torch import Tensor

from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.operator import NEGLIGIBLE, OperatorBackend
from muse_adapter.ops.reference import add_skip, discretise, first_state, valid_positions

# Elements of a chunk's state tensor: large enough to hide the cost of a torch call, small enough
# for the cache.
CHUNK_ELEMENTS = 1 << 19


class RecurrentBackend(OperatorBackend):
    """Plain torch, which runs wherever torch runs."""

    name = "torch"

    def unavailable(self, device: torch.device | None = None) -> str | None:
        """See `Backend.unavailable`."""
        return None

    def saved_states_shape(
        self, batch: int, length: int, channels: int, states: int
    ) -> tuple[int, ...]:
        """Return the shape of the states before every chunk of time."""
        size = _chunk_size(length, batch * channels * states)
        return (length + size - 1) // size, batch, channels, states

    def scan_forward(
        self, inputs: ScanInputs, saved_states: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """See `OperatorBackend.scan_forward`."""
        x, dt, A, B, C = _prepare(inputs)
        reverse = inputs.reverse
        state = first_state(inputs, A)
        y = torch.empty_like(x)
        for index, part in enumerate(_chunks(x.shape[1], state.numel(), reverse)):
            if saved_states is not None:
                saved_states[index] = state.flatten(1, 2)
            _, states = _states(x[:, part], dt[:, part], A, _part(B, part), state, reverse)
            after = states[:-1] if reverse else states[1:]
            C_part = _part(C, part).transpose(0, 1).unsqueeze(-1)
            y[:, part] = (after @ C_part).squeeze(-1).transpose(0, 1)
            state = states[0 if reverse else -1].clone()
        return add_skip(y, x, inputs.D), state.flatten(1, 2)

    def scan_backward(
        self,
        inputs: ScanInputs,
        saved_states: Tensor,
        grad_y: Tensor | None,
        grad_state: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """See `OperatorBackend.scan_backward`."""
        x, dt, A, B, C = _prepare(inputs)
        reverse = inputs.reverse
        valid = valid_positions(inputs.lengths, x)
        if grad_y is None:
            grad_y = x.new_zeros(()).expand_as(x)
        else:
            grad_y = grad_y.unflatten(-1, x.shape[2:])
            if valid is not None:
                grad_y = torch.where(valid.unsqueeze(-1), grad_y, 0)
        # The gradient of the state that leaves a chunk; in the end, of the initial state.
        carry = A.new_zeros(x.shape[0], *A.shape)
        if grad_state is not None:
            carry.copy_(grad_state.unflatten(1, A.shape[:2]))
        grad_x, grad_dt = torch.empty_like(x), torch.empty_like(dt)
        grad_A, grad_B, grad_C = torch.zeros_like(A), torch.zeros_like(B), torch.zeros_like(C)
        chunks = _chunks(x.shape[1], carry.numel(), reverse)
        starts = saved_states.unflatten(2, A.shape[:2])
        for start, part in zip(starts.flip(0), reversed(chunks), strict=True):
            x_part, dt_part = x[:, part].transpose(0, 1), dt[:, part].transpose(0, 1)
            B_part, C_part = _part(B, part).transpose(0, 1), _part(C, part).transpose(0, 1)
            grad_part = grad_y[:, part].transpose(0, 1)
            decay, states = _states(x[:, part], dt[:, part], A, _part(B, part), start, reverse)
            after, before = (states[:-1], states[1:]) if reverse else (states[1:], states[:-1])

            # Of each state, (c, batch, G, K, S).
            grad = grad_part.unsqueeze(-1) * C_part.unsqueeze(-2)
            order = list(zip(grad.unbind(0), decay.unbind(0), strict=True))
            for grad_t, decay_t in order if reverse else reversed(order):
                grad_t += carry
                torch.mul(grad_t, decay_t, out=carry)

            _add_part(grad_C, part, _channel_sum(grad_part, after))
            _add_part(grad_B, part, _channel_sum(dt_part * x_part, grad))
            grad_dt_x = (grad @ B_part.unsqueeze(-1)).squeeze(-1)
            grad_x[:, part] = (grad_dt_x * dt_part).transpose(0, 1)
            grad.mul_(decay).mul_(before)  # now the gradient of dt_t A
            grad_A += torch.mul(grad, dt_part.unsqueeze(-1), out=decay).sum((0, 1))
            from_decay = grad.mul_(A).sum(-1)
            grad_dt[:, part] = from_decay.addcmul_(grad_dt_x, x_part).transpose(0, 1)

        grad_D = None
        if inputs.D is not None:
            grad_D = (grad_y * x).sum((0, 1)).flatten()
            grad_x.addcmul_(grad_y, inputs.D.to(x.dtype).view(x.shape[2:]))
        grad_x = grad_x.flatten(2)
        grad_delta, grad_bias = _step_size_gradients(inputs, grad_dt.flatten(2), valid)
        grad_B, grad_C = (
            grad.unflatten(2, (matrix.shape[2], -1)).sum(3).sum_to_size(matrix.shape)
            for grad, matrix in ((grad_B, inputs.B), (grad_C, inputs.C))
        )
        if x.device.type == "cpu":
            for gradient in (grad_x, grad_delta, grad_B, grad_C):
                torch.hardshrink(gradient, NEGLIGIBLE[x.dtype], out=gradient)
        grad_initial = None if inputs.initial_state is None else carry.flatten(1, 2)
        grad_A = grad_A.flatten(0, 1)
        return grad_x, grad_delta, grad_A, grad_B, grad_C, grad_D, grad_bias, grad_initial


TORCH = RecurrentBackend()


def _prepare(inputs: ScanInputs) -> list[Tensor]:
    """Discretise, with the numbers of neighbouring channels next to each other in memory.

    `selective_scan` comes with time innermost, which is four times slower here.
    """
    return [tensor.contiguous() for tensor in discretise(inputs)]


def _step_size_gradients(
    inputs: ScanInputs, grad: Tensor, valid: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Gradients of delta and delta_bias from that of dt, (batch, L, E)."""
    bias = inputs.delta_bias
    if inputs.delta_softplus:
        steps = inputs.delta.to(grad.dtype)
        steps = steps if bias is None else steps + bias.to(grad.dtype)
        grad = torch.ops.aten.softplus_backward(grad, steps, 1, 20)
    if valid is not None:
        grad = torch.where(valid, grad, 0)
    return grad, None if bias is None else grad.sum((0, 1))


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
    """Return the chunk's part of B or C: all of it where it is constant in time."""
    return tensor if tensor.shape[1] == 1 else tensor[:, part]


def _add_part(grad: Tensor, part: slice, value: Tensor) -> None:
    """Add a chunk's gradient (c, batch, G, S), summed over what B or C is constant in."""
    target = _part(grad, part)
    target += value.transpose(0, 1).sum_to_size(target.shape)


def _chunk_size(length: int, state_elements: int) -> int:
    """Return the steps in a chunk: the states stored are never more than a chunk's own."""
    root = torch.sym_int(length**0.5) + 1
    size: int = torch.sym_max(root, CHUNK_ELEMENTS // torch.sym_max(1, state_elements))
    return size


def _chunks(length: int, state_elements: int, reverse: bool) -> list[slice]:
    """Slices of time in the order of the scan."""
    size = _chunk_size(length, state_elements)
    chunks = [slice(start, min(start + size, length)) for start in range(0, length, size)]
    return chunks[::-1] if reverse else chunks
