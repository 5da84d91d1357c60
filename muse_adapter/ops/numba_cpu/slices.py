"""A Mamba mixer without a gradient, in slices of the sequence that stay in the caches.

Of what stands between the input projection and the output only x exists as a whole. The convolved
tokens, step sizes, B, C and the gate exist for one slice at a time: they are read while they are
near, and memory that is taken anew costs as much as some of the arithmetic. The state goes on from
one slice to the next, and the convolution reads across the border.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.mixer_inputs import MixerInputs, select
from muse_adapter.ops.numba_cpu.convolution import run_forward as convolve
from muse_adapter.ops.numba_cpu.function import scan_into

ROWS = 1024  # tokens of a slice, for each thread


def mix(inputs: MixerInputs) -> Tensor:
    """Run `muse_adapter.ops.mamba_mixer`, all tensors in float32 or all in float64."""
    tokens, in_proj, directions, lengths, positions, end = inputs
    batch, length, _ = tokens.shape
    places = length if positions is None else positions.shape[1]
    y = tokens.new_empty(batch, places, in_proj.shape[0] // 2)
    rows = ROWS * torch.get_num_threads()
    videos = max(1, rows // max(1, length))
    slices = max(1, -(-length // rows))  # of one video; several of them are one slice
    for first in range(0, batch, videos):
        group = slice(first, first + videos)
        part_lengths, part_positions = (
            None if given is None else given[group] for given in (lengths, positions)
        )
        part = MixerInputs(tokens[group], in_proj, directions, part_lengths, part_positions, end)
        _mix(part, slices, y[group])
    return y


def _mix(inputs: MixerInputs, slices: int, y: Tensor) -> None:
    """Write y of the videos that are one slice, or of one video."""
    tokens, in_proj, directions, lengths, positions, stop = inputs
    batch, length, _ = tokens.shape
    x = inputs.project()
    taps = torch.stack([direction.conv.squeeze(1).t() for direction in directions])
    biases = torch.stack([direction.conv_bias for direction in directions])
    parts = list(itertools.pairwise(length * number // slices for number in range(slices + 1)))
    if positions is not None:
        y.zero_()
    for index, weights in enumerate(directions):
        reverse, last, state = index == 1, index == len(directions) - 1, None
        for begin, end in reversed(parts) if reverse else parts:
            end = end if reverse else min(end, stop)
            if begin >= end:
                continue
            convolved = x.new_empty(batch, end - begin, x.shape[2])
            one = [(end, convolved) if i == index else (0, None) for i in range(len(directions))]
            convolve(x, taps, biases, begin, *zip(*one, strict=True))
            remaining = None if lengths is None else lengths - begin
            scan = weights.scan_inputs(convolved, remaining, reverse=reverse, initial_state=state)
            if positions is None:
                gate = F.linear(tokens[:, begin:end], in_proj.chunk(2)[1]) if last else None
                state = scan_into(scan, y[:, begin:end], added=index > 0, gate=gate)
            else:
                part = torch.empty_like(convolved)
                state = scan_into(scan, part)
                _add_at(positions - begin, part, y)
    if positions is not None:
        y *= F.silu(inputs.gate())


def _add_at(positions: Tensor, part: Tensor, y: Tensor) -> None:
    """Add the part's values at the positions to y; positions beyond it have none."""
    count = part.shape[1]
    within = (positions >= 0) & (positions < count)
    values = select(part, positions.clamp(0, count - 1))
    y += torch.where(within.unsqueeze(-1), values, 0)
