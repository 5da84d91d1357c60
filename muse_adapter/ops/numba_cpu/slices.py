"""A Mamba mixer without a gradient, in slices of the sequence that stay in the caches.

Of what stands between the input projection and the output only x exists as a whole. The convolved
tokens, step sizes, B, C and the gate exist for one slice at a time: they are read while they are
near, and memory that is taken anew costs as much as some of the arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.mamba import MambaDirection
from muse_adapter.ops.numba_cpu.convolution import run_forward as convolve
from muse_adapter.ops.numba_cpu.function import Call, blocks, run_forward
from muse_adapter.ops.numba_cpu.simd import LOG2E

ROWS = 1024  # tokens of a slice, for each thread


def mix(
    tokens: Tensor,
    in_proj: Tensor,
    directions: Sequence[MambaDirection],
    lengths: Tensor | None,
    positions: Tensor | None,
    stop: int,
) -> Tensor:
    """`muse_adapter.ops.mamba.mamba_inference`, all tensors in float32 or all in float64."""
    batch, length, _ = tokens.shape
    channels = in_proj.shape[0] // 2
    if positions is None:
        y = tokens.new_empty(batch, length, channels)
    else:
        y = tokens.new_zeros(batch, positions.shape[1], channels)
    if lengths is not None:
        lengths = lengths.to(torch.int64).clamp(0, length).expand(batch)
    rows = ROWS * torch.get_num_threads()
    videos = max(1, rows // max(1, length))
    slices = max(1, -(-length // rows))  # of one video; several of them are one slice
    for first in range(0, batch, videos):
        group = slice(first, first + videos)
        _mix(
            tokens[group],
            in_proj,
            directions,
            None if lengths is None else lengths[group],
            None if positions is None else positions[group],
            stop,
            slices,
            y[group],
        )
    return y


def _mix(
    tokens: Tensor,
    in_proj: Tensor,
    directions: Sequence[MambaDirection],
    lengths: Tensor | None,
    positions: Tensor | None,
    stop: int,
    slices: int,
    y: Tensor,
) -> None:
    """Write y of the videos that are one slice, or of one video."""
    batch, length, _ = tokens.shape
    weight_x, weight_z = in_proj.chunk(2)
    x = F.linear(tokens, weight_x)
    if lengths is None:
        lengths = torch.full((batch,), length)
    else:
        behind = torch.arange(length) >= lengths.unsqueeze(1)
        x.masked_fill_(behind.unsqueeze(-1), 0)  # the taps that look ahead meet it
    taps = torch.stack([direction.conv.squeeze(1).t() for direction in directions])
    biases = torch.stack([direction.conv_bias for direction in directions])
    edges = [length * number // slices for number in range(slices + 1)]
    parts = list(itertools.pairwise(edges))
    for index, weights in enumerate(directions):
        reverse, last = index == 1, index == len(directions) - 1
        A_log2e = blocks(weights.A.t() * LOG2E)
        rank, states = weights.dt_proj.shape[1], weights.A.shape[1]
        state = None
        for begin, end in reversed(parts) if reverse else parts:
            if not reverse:
                end = min(end, stop)
                if begin >= end:
                    break
            convolved = x.new_empty(batch, end - begin, x.shape[2])
            one = [(end, convolved) if i == index else (0, None) for i in range(len(directions))]
            convolve(x, taps, biases, begin, *zip(*one, strict=True))
            low, B, C = F.linear(convolved, weights.x_proj).split((rank, states, states), -1)
            call = Call(
                x=convolved,
                delta=F.linear(low, weights.dt_proj),
                A_log2e=A_log2e,
                B=B.unsqueeze(2),
                C=C.unsqueeze(2),
                D=weights.D.contiguous(),
                bias=weights.dt_bias.contiguous(),
                lengths=(lengths - begin).clamp(0, end - begin),
                own=(False, False),
                softplus=True,
                reverse=reverse,
            )
            if positions is None:
                gate = F.linear(tokens[:, begin:end], weight_z) if last else None
                state = run_forward(call, y[:, begin:end], states=state, added=index > 0, gate=gate)
            else:
                part = torch.empty_like(convolved)
                state = run_forward(call, part, states=state)
                _add_at(positions - begin, part, y)
    if positions is not None:
        y *= F.silu(F.linear(_select(tokens, positions), weight_z))
        y.masked_fill_((positions >= lengths.unsqueeze(1)).unsqueeze(-1), 0)


def _add_at(positions: Tensor, part: Tensor, y: Tensor) -> None:
    """Add the part's values at the positions to y; positions beyond it have none."""
    count = part.shape[1]
    within = (positions >= 0) & (positions < count)
    values = _select(part, positions.clamp(0, count - 1))
    y += torch.where(within.unsqueeze(-1), values, 0)


def _select(tensor: Tensor, positions: Tensor) -> Tensor:
    return tensor.gather(1, positions.unsqueeze(-1).expand(-1, -1, tensor.shape[2]))
