"""The kernels as a function of tensors: shapes they can read, threads, memory, gradients."""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.inputs import ScanInputs, state_dtype
from muse_adapter.ops.numba_cpu.backward import backward
from muse_adapter.ops.numba_cpu.backward import work_size as backward_work_size
from muse_adapter.ops.numba_cpu.denormals import flushed
from muse_adapter.ops.numba_cpu.forward import forward
from muse_adapter.ops.numba_cpu.forward import work_size as forward_work_size
from muse_adapter.ops.numba_cpu.kernel import Kernel
from muse_adapter.ops.numba_cpu.simd import LOG2E, WIDTH

# Steps from one saved state to the next, a multiple of WIDTH; the backward kernel holds a chunk in
# the nearest cache.
CHUNK = 32
ENOUGH = 1 << 18  # below so many states in all a second thread is not worth its start


@dataclasses.dataclass(frozen=True)
class Call:
    """One scan as the kernels read it. All tensors but `lengths` are float32 or float64.

    Attributes:
        x, delta: (batch, L, E), last dimension contiguous, E a multiple of WIDTH.
        A_log2e: A log2(e) in blocks, (E / WIDTH, S, WIDTH).
        B, C: (batch or 1, L or 1, G, S) where a group is whole blocks, otherwise with a value for
            every channel, (batch or 1, L or 1, S, E), channels beside each other.
        D, bias: (E,).
        lengths: (batch,), int64, at most L.
        own: whether every channel has its own values of B, and of C.
        softplus, reverse: as in `scan`.
    """

    x: Tensor
    delta: Tensor
    A_log2e: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
    lengths: Tensor
    own: tuple[bool, bool]
    softplus: bool
    reverse: bool

    @functools.cached_property
    def group_blocks(self) -> tuple[int, int]:
        """How many blocks share their values of B, and of C."""
        blocks = self.A_log2e.shape[0]
        b, c = (
            1 if own else blocks // gain.shape[2]
            for own, gain in zip(self.own, (self.B, self.C), strict=True)
        )
        return b, c

    @functools.cached_property
    def blocks_per_job(self) -> int:
        """Blocks in a job: enough to share sums over channels, so few that every core has jobs.

        It depends on shapes alone, and with it the order of all sums.
        """
        limit = max(1, min(4, self.x.shape[0] * self.A_log2e.shape[0] // 16))
        return max(n for n in range(1, limit + 1) if all(g % n == 0 for g in self.group_blocks))

    def run(self, kernel: Kernel, *arguments: tuple[int, ...], threads: int) -> None:
        """Run a kernel on all jobs."""
        batch, length, _ = self.x.shape
        blocks, states, _ = self.A_log2e.shape
        views = []
        for gain, own, group in zip((self.B, self.C), self.own, self.group_blocks, strict=True):
            address, *strides = view(gain)
            strides[2:] = (WIDTH, strides[2]) if own else strides[2:]
            views.append((address, *strides, group, int(own)))
        kernel.run(
            *(self.x.dtype, threads),
            (batch, length, blocks, states, CHUNK, self.blocks_per_job),
            (int(self.softplus), int(self.reverse)),
            view(self.x)[:3],
            view(self.delta)[:3],
            *views,
            addresses(self.A_log2e, self.D, self.bias, self.lengths),
            *arguments,
        )

    def threads(self) -> int:
        """How many threads share the work."""
        jobs = self.x.shape[0] * self.A_log2e.shape[0] // self.blocks_per_job
        enough = self.x.numel() * self.A_log2e.shape[1] >= ENOUGH
        return max(1, min(torch.get_num_threads(), jobs)) if enough else 1


def prepare(inputs: ScanInputs) -> Call:
    """Bring the inputs of a scan into the shapes of a `Call`."""
    x, delta, A, B, C, D, delta_bias, _, lengths, softplus, reverse = inputs
    batch, length, channels = x.shape
    dtype = state_dtype(x)
    spare = -channels % WIDTH

    def wide(tensor: Tensor | None) -> Tensor:
        if tensor is None:
            return torch.zeros(channels + spare, dtype=dtype)
        return padded(tensor.to(dtype), spare)

    def matrix(given: Tensor) -> tuple[Tensor, bool]:
        group = channels // given.shape[2]
        if group == channels or group % WIDTH == 0:
            return last_dim_contiguous(given.to(dtype)), False
        return wide(given.transpose(2, 3).repeat_interleave(group, 3)), True

    A_log2e = blocks(wide(A.to(dtype).t() * LOG2E))
    (B, own_b), (C, own_c) = matrix(B), matrix(C)
    if lengths is None:
        lengths = torch.full((batch,), length)
    lengths = lengths.to(torch.int64).clamp(0, length).contiguous()
    return Call(
        *(wide(x), wide(delta), A_log2e, B, C, wide(D), wide(delta_bias), lengths),
        *((own_b, own_c), softplus, reverse),
    )


def scan_forward(inputs: ScanInputs, saved_states: Tensor | None) -> tuple[Tensor, Tensor]:
    """Compute the outputs and the last state, see `OperatorBackend.scan_forward`."""
    call, channels = prepare(inputs), inputs.x.shape[2]
    y = call.x.new_empty(call.x.shape)
    first = _initial_blocks(call, inputs.initial_state)
    last = from_blocks(run_forward(call, y, saved_states, states=first))
    return (y, last) if y.shape[2] == channels else (y[..., :channels], last[:, :channels])


def scan_into(
    inputs: ScanInputs, y: Tensor, *, added: bool = False, gate: Tensor | None = None
) -> Tensor:
    """Write the outputs of a scan into y and return the last state (batch, E, S).

    Args:
        inputs: See `ScanInputs`; E is a multiple of WIDTH.
        y, added, gate: As in `run_forward`.
    """
    call = prepare(inputs)
    first = _initial_blocks(call, inputs.initial_state)
    return from_blocks(run_forward(call, y, states=first, added=added, gate=gate))


def scan_backward(
    inputs: ScanInputs,
    saved_states: Tensor,
    grad_y: Tensor | None,
    grad_state: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """Compute the gradients, see `OperatorBackend.scan_backward`."""
    call, channels = prepare(inputs), inputs.x.shape[2]
    spare = call.x.shape[2] - channels
    grad_y = None if grad_y is None else padded(grad_y, spare)
    dstates = _initial_blocks(call, grad_state)
    if dstates is None:
        dstates = zeros(call.x, len(call.x), *call.A_log2e.shape)
    gradients = run_backward(call, saved_states, grad_y, dstates)
    gradients = (*as_given(call, gradients, inputs.B, inputs.C, spare), from_blocks(dstates))
    gradients = (*gradients[:7], gradients[7][:, :channels])
    return tuple(
        None if given is None else gradient
        for given, gradient in zip(inputs.differentiable(), gradients, strict=True)
    )


def _initial_blocks(call: Call, state: Tensor | None) -> Tensor | None:
    """Copy states (batch, E, S) into blocks, (batch, E / WIDTH, S, WIDTH): kernels write there."""
    if state is None:
        return None
    channels = call.x.shape[2]
    state = padded(state.to(call.x.dtype).transpose(1, 2), channels - state.shape[1])
    in_blocks = state.unflatten(2, (-1, WIDTH)).transpose(1, 2)
    return in_blocks.clone(memory_format=torch.contiguous_format)


def from_blocks(states: Tensor) -> Tensor:
    """Return states as (batch, E, S), from blocks."""
    return states.transpose(2, 3).flatten(1, 2)


def blocks(values: Tensor) -> Tensor:
    """Arrange values of channels and states by blocks: (S, E) -> (E / WIDTH, S, WIDTH)."""
    return values.unflatten(1, (-1, WIDTH)).transpose(0, 1).contiguous()


def run_forward(
    call: Call,
    y: Tensor,
    saved_states: Tensor | None = None,
    *,
    states: Tensor | None = None,
    added: bool = False,
    gate: Tensor | None = None,
) -> Tensor:
    """Write the outputs of a call; the last states (batch, E / WIDTH, S, WIDTH).

    Args:
        y: (batch, L, E), contiguous.
        saved_states: (batch, E / WIDTH, chunks, S, WIDTH) receives the state before every chunk;
            None: they are not wanted.
        states: those that a call on the tokens before (or behind, in reverse) has left, to go on
            from; they become the last ones of this call. None: zeros.
        added: add the outputs to what stands in y.
        gate: (batch, L, E), channels beside each other: outputs are multiplied by its SiLU.
    """
    threads = call.threads()
    joined = int(states is not None), int(added)
    if states is None:
        states = call.x.new_empty(call.x.shape[:1] + call.A_log2e.shape)
    work = call.x.new_empty(threads, forward_work_size(CHUNK))
    gate_view = (0, 0, 0) if gate is None else view(gate)[:3]
    call.run(forward, addresses(y, states, saved_states, work), joined, gate_view, threads=threads)
    return states


def run_backward(
    call: Call, saved_states: Tensor, dy: Tensor | None, dstates: Tensor
) -> tuple[Tensor, ...]:
    """Gradients of a call's seven floating tensors.

    Args:
        call: The scan.
        saved_states: As `run_forward` left them.
        dy: Gradient of the outputs; None: zero.
        dstates: (batch, E / WIDTH, S, WIDTH), the gradient of the last states, which becomes that
            of the initial states.
    """
    x, batch, threads = call.x, call.x.shape[0], call.threads()
    dy = zeros(x, x.shape[2]).expand(x.shape) if dy is None else last_dim_contiguous(dy)
    dx, ddelta = x.new_empty(x.shape), x.new_empty(x.shape)
    dA_log2e, dD, dbias = (
        x.new_empty(batch, *tensor.shape) for tensor in (call.A_log2e, call.D, call.bias)
    )
    dgains, views = [], []
    for gain, own, group in zip((call.B, call.C), call.own, call.group_blocks, strict=True):
        dgain = x.new_empty(group // call.blocks_per_job, batch, *gain.shape[1:])
        *strides, by_group, by_state = view(dgain)
        strides += (WIDTH, by_group) if own else (by_group, by_state)
        dgains.append(dgain)
        views.append(tuple(strides))
    work = x.new_empty(threads, backward_work_size(call.A_log2e.shape[1], CHUNK))
    call.run(
        backward,
        view(dy)[:3],
        addresses(saved_states, work),
        addresses(dx, ddelta, dA_log2e, dD, dbias, dstates),
        *views,
        threads=threads,
    )
    dB, dC = (
        summed(dgain) if len(gain) == batch else summed(dgain.flatten(0, 1)).unsqueeze(0)
        for dgain, gain in zip(dgains, (call.B, call.C), strict=True)
    )
    # The kernel differentiates 2**(dt A log2(e)) as if it were exp.
    dA_log2e = summed(dA_log2e) / LOG2E
    return dx, ddelta, dA_log2e, dB, dC, summed(dD), summed(dbias)


def as_given(
    call: Call, gradients: tuple[Tensor, ...], B: Tensor, C: Tensor, spare: int
) -> tuple[Tensor, ...]:
    """Gradients of a call's tensors, as those of the tensors that `prepare` was given.

    Args:
        B, C: as given to `prepare`; of A, D and delta_bias only the shapes of `call` matter.
        spare: how many channels `prepare` has added.
    """
    dx, ddelta, dA_log2e, *dgains, dD, dbias = gradients
    channels = call.x.shape[2] - spare
    dA = dA_log2e.transpose(0, 1).flatten(1).t() * LOG2E
    # A value for every channel came from its group's.
    dB, dC = (
        flushed(
            dgain[..., :channels].unflatten(3, (gain.shape[2], -1)).sum(4).transpose(2, 3)
            if own
            else dgain
        )
        for dgain, gain, own in zip(dgains, (B, C), call.own, strict=True)
    )
    return (
        dx[..., :channels],
        ddelta[..., :channels],
        dA[:channels],
        dB,
        dC,
        dD[:channels],
        dbias[:channels],
    )


# By numpy, both: torch would wake its threads, which takes longer than the sum if the machine is
# busy.


def zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros in the type of `like`."""
    tensor = like.new_empty(shape)
    tensor.numpy().fill(0)
    return tensor


def summed(tensor: Tensor) -> Tensor:
    """Sum over the first dimension, one after the other."""
    return tensor[0] if len(tensor) == 1 else torch.from_numpy(tensor.numpy().sum(0))


def view(tensor: Tensor) -> tuple[int, ...]:
    """Address and strides, 0 where a size of 1 stands for all."""
    pairs = zip(tensor.shape, tensor.stride(), strict=True)
    return (tensor.data_ptr(), *(0 if size == 1 else stride for size, stride in pairs))


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """Addresses of contiguous tensors, 0 for None."""
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def padded(tensor: Tensor, spare: int) -> Tensor:
    """Pad the last dimension by `spare` zeros and make it contiguous."""
    return last_dim_contiguous(F.pad(tensor, (0, spare)) if spare else tensor)


def last_dim_contiguous(tensor: Tensor) -> Tensor:
    """Return the tensor itself if its last dimension is contiguous, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()
