"""The scan as a function of tensors: working memory, threads, gradients around the kernels."""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from muse_adapter.ops.numba_cpu.backward import backward, backward_work
from muse_adapter.ops.numba_cpu.forward import forward, forward_work
from muse_adapter.ops.numba_cpu.pool import share
from muse_adapter.ops.numba_cpu.simd import WIDTH

CHUNK = 16  # steps from one kept state to the next; the way back holds a chunk in the L1 cache
ENOUGH = 1 << 18  # below so many states in all, a second thread is not worth its start


class Plan(NamedTuple):
    """How the channels are cut into blocks and the blocks into jobs.

    Attributes:
        jobs: rows of first block, last block + 1, part of dB, part of dC.
        blocks: rows of first channel, channels.
        longest: the most blocks that a job has.
        parts: how many jobs add to the same group of B, and of C.
        mixed: whether a block has channels of several groups of B, and of C.
    """

    jobs: Tensor
    blocks: Tensor
    longest: int
    parts: tuple[int, int]
    mixed: tuple[bool, bool]


@functools.lru_cache(maxsize=64)
def plan(channels: int, sizes: tuple[int, int], longest: int) -> Plan:
    """Cut the channels so that a block lies in one group, or holds whole groups.

    Args:
        channels: E.
        sizes: channels in a group of B, and of C. Unless they are equal, one of them is E.
        longest: the most blocks in a job.
    """
    mixed = tuple(size <= WIDTH // 2 and size < channels for size in sizes)
    segment, span = min(sizes), WIDTH
    if any(mixed):
        # Several groups in a register: one block a job, so that each group belongs to one job.
        segment, span, longest = channels, WIDTH // min(sizes) * min(sizes), 1
    blocks, jobs = [], []
    used: dict[tuple[int, int], int] = {}
    for begin in range(0, channels, segment):
        end = begin + segment
        first = len(blocks)
        blocks += [(c, min(span, end - c)) for c in range(begin, end, span)]
        for block in range(first, len(blocks), longest):
            job = [block, min(block + longest, len(blocks))]
            for which, size in enumerate(sizes):
                key = (which, blocks[block][0] // size)
                job.append(0 if mixed[which] else used.get(key, 0))
                used[key] = used.get(key, 0) + 1
            jobs.append(job)
    parts = tuple(1 + max(job[2 + which] for job in jobs) for which in (0, 1))
    return Plan(torch.tensor(jobs), torch.tensor(blocks), longest, parts, mixed)


class Call(NamedTuple):
    """One scan, its tensors as the kernels read them: one dtype, channels and states side by side.

    Attributes:
        x, delta: (batch, L, E).
        A: (E, S).
        B, C: (batch or 1, L or 1, G, S).
        D, bias: (E,).
        lengths: (batch,), int64, at most L.
        softplus, reverse: as in `scan`.
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor
    lengths: Tensor
    softplus: bool
    reverse: bool

    def plan(self) -> Plan:
        """Jobs long enough to share sums over channels, short enough to give every core some."""
        batch, _, channels = self.x.shape
        longest = max(1, min(4, batch * channels // (16 * WIDTH)))
        return plan(channels, (channels // self.B.shape[2], channels // self.C.shape[2]), longest)

    def states(self) -> Tensor:
        """Memory for the state before every chunk."""
        batch, length, _ = self.x.shape
        chunks = -(-length // CHUNK)
        return self.x.new_empty(batch, len(self.plan().blocks), chunks, self.A.shape[1], WIDTH)

    def run(self, kernel: Any, numbers: int, *arguments: tuple[int, ...]) -> None:
        """Run a kernel on all jobs, each thread with `numbers` numbers of working memory."""
        (batch, length, channels), states = self.x.shape, self.A.shape[1]
        cut = self.plan()
        jobs = batch * len(cut.jobs)
        threads = min(torch.get_num_threads(), jobs)
        if self.x.numel() * states < ENOUGH:
            threads = 1
        work = self.x.new_empty(max(threads, 1), numbers)
        counter = torch.zeros(1, dtype=torch.int64)
        common = (
            np.float64(1) if self.x.dtype == torch.float64 else np.float32(1),
            (cut.jobs.data_ptr(), cut.blocks.data_ptr(), len(cut.jobs), len(cut.blocks)),
            (batch, length, channels, states, CHUNK),
            (int(self.softplus), int(self.reverse)),
            view(self.x)[:3],
            view(self.delta)[:3],
            *(
                (*view(gain)[:4], channels // gain.shape[2], int(mixed))
                for gain, mixed in zip((self.B, self.C), cut.mixed, strict=True)
            ),
            addresses(self.A, self.D, self.bias, self.lengths),
        )

        def worker(number: int) -> None:
            kernel(counter.data_ptr(), work[number].data_ptr(), *common, *arguments)

        share(worker, max(threads, 1))


def view(tensor: Tensor) -> tuple[int, ...]:
    """Address and strides, 0 where a size of 1 stands for all."""
    strides = (
        0 if size == 1 else stride
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return (tensor.data_ptr(), *strides)


def addresses(*tensors: Tensor | None) -> tuple[int, ...]:
    """Addresses of contiguous tensors, 0 for None."""
    return tuple(0 if tensor is None else tensor.data_ptr() for tensor in tensors)


def run_forward(call: Call, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Outputs (batch, L, E) and last states (batch, E, S); `kept` receives the chunks' states."""
    y = torch.empty_like(call.x, memory_format=torch.contiguous_format)
    last = call.x.new_empty(call.x.shape[0], *call.A.shape)
    call.run(forward, forward_work(call.A.shape[1]), addresses(y, last, kept))
    return y, last


class Scan(torch.autograd.Function):
    """The scan of a `Call`, differentiable once."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        call = Call(*inputs)
        kept = call.states()
        ctx.save_for_backward(*inputs[:8], kept)
        ctx.flags = inputs[8:]
        ctx.set_materialize_grads(False)
        return run_forward(call, kept)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        call = Call(*tensors, *ctx.flags)
        x, cut = call.x, call.plan()
        batch, length, channels = x.shape
        if dy is None:
            dy = x.new_zeros(1, 1, channels).expand(x.shape)
        dy = beside(dy)
        dlast = None if dlast is None else dlast.contiguous()
        dx, ddelta = x.new_empty(x.shape), x.new_empty(x.shape)
        dA, dD, dbias = (
            x.new_empty(batch, *tensor.shape) for tensor in (call.A, call.D, call.bias)
        )
        gains = [
            x.new_zeros(parts, batch, *gain.shape[1:])
            for parts, gain in zip(cut.parts, (call.B, call.C), strict=True)
        ]
        call.run(
            backward,
            backward_work(call.A.shape[1], CHUNK, cut.longest),
            view(dy)[:3],
            addresses(kept, dlast),
            addresses(dx, ddelta, dA, dD, dbias),
            *((part.data_ptr(), *(part.stride()[:2]), *view(part[0])[2:4]) for part in gains),
        )
        dB, dC = (
            part.sum(0).sum_to_size(gain.shape)
            for part, gain in zip(gains, (call.B, call.C), strict=True)
        )
        return dx, ddelta, dA.sum(0), dB, dC, dD.sum(0), dbias.sum(0), None, None, None


def beside(tensor: Tensor) -> Tensor:
    """The tensor itself if the numbers of its last dimension stand beside each other, else a copy."""
    return tensor if tensor.stride(-1) == 1 or tensor.shape[-1] == 1 else tensor.contiguous()
