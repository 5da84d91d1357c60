"""A Mamba mixer without a gradient, as tasks on slices of the sequence.

The convolved tokens, step sizes, B and C exist for one slice at a time: they are read while they
are near, and memory that is taken anew costs as much as some of the arithmetic. The state goes on
from one slice to the next, and the convolution reads across the border. The directions start from
opposite ends at the same time; whichever comes second to a slice adds its outputs to the other's
and gates the sum.

With the plain composition instead, inference over 3,060 tokens with 2 threads takes 1.15 times as
long beside a busy process and 1.02 times on a quiet machine (`python -m benchmarks.ablation`, 2
cores of an AMD EPYC, torch 2.13.0, 2026-11-28), and 1.05 and 1.25 times on one with AVX-512
(2026-11-29).
"""

from __future__ import annotations

import itertools
import threading
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from muse_adapter.ops.inputs import ScanInputs
from muse_adapter.ops.linear_map import linear
from muse_adapter.ops.mixer_inputs import MixerInputs, MixerState, select, zero_behind
from muse_adapter.ops.numba_cpu.convolution import run_forward as convolve
from muse_adapter.ops.numba_cpu.function import scan_into
from muse_adapter.ops.numba_cpu.parallel import run_tasks
from muse_adapter.ops.numba_cpu.schedule import Task

ROWS = 1024  # tokens of a slice


def mix(inputs: MixerInputs) -> tuple[Tensor, MixerState | None]:
    """Run `Backend.mamba_mixer`, all tensors in float32 or all in float64."""
    tokens, in_proj, directions, lengths, positions, end, state = inputs
    batch, length, _ = tokens.shape
    last = None if state is None else MixerState(*(torch.empty_like(t) for t in state))
    places = length if positions is None else positions.shape[1]
    y = tokens.new_empty(batch, places, in_proj.shape[0] // 2)
    # Convolutions of all directions, as the kernel reads them.
    taps = torch.stack([direction.conv.squeeze(1).t() for direction in directions])
    biases = torch.stack([direction.conv_bias for direction in directions])
    videos = max(1, ROWS // max(1, length))
    parts = []
    for first in range(0, batch, videos):
        group = slice(first, first + videos)
        part_lengths, part_positions = (
            None if given is None else given[group] for given in (lengths, positions)
        )
        before = None if state is None else MixerState(*(t[group] for t in state))
        part_inputs = MixerInputs(
            *(tokens[group], in_proj, directions, part_lengths, part_positions, end, before)
        )
        parts.append((group, _SlicedMixer(part_inputs, taps, biases, y[group])))
    run_tasks([task for _, part in parts for task in part.tasks()], torch.get_num_threads())
    if positions is not None:
        y *= F.silu(inputs.gate())
    if last is not None:
        for group, part in parts:
            last.conv[group], last.scan[group] = part.last_state()
    return y, last


class _SlicedMixer:
    """The tasks of one video, or of several that are one slice together.

    Args:
        inputs: Of these videos.
        taps, biases: (directions, taps, E) and (directions, E), of the convolutions.
        y: (batch, L, E), or (batch, P, E) at the positions, to be written; at positions without the
            gate.
    """

    def __init__(self, inputs: MixerInputs, taps: Tensor, biases: Tensor, y: Tensor) -> None:
        self.inputs, self.taps, self.biases, self.y = inputs, taps, biases, y
        batch, length, _ = inputs.tokens.shape
        # An even number, so that the directions meet between two slices.
        count = 1 if length <= ROWS else 2 * -(-length // (2 * ROWS))
        rows = max(1, -(-length // count))
        self.slices = [(begin, min(begin + rows, length)) for begin in range(0, length, rows)]
        if inputs.positions is not None:
            y.zero_()
        # x, and behind it z where it is wanted at all positions.
        self.weight = inputs.in_proj if inputs.positions is None else inputs.in_proj.chunk(2)[0]
        self.previous = inputs.num_previous  # rows in front of the first token's
        self.xz = y.new_empty(batch, self.previous + length, self.weight.shape[0])
        self.x = self.xz[..., : y.shape[2]]
        self.scans: dict[tuple[int, int], ScanInputs] = {}
        self.states: list[Tensor | None] = [None] * len(inputs.directions)
        if inputs.state is not None:
            self.x[:, : self.previous] = inputs.state.conv
            self.states[0] = inputs.state.scan
        self.outputs = [0] * len(self.slices)  # of how many directions stand in a slice of y
        self.locks = [threading.Lock() for _ in self.slices]  # of the slices of y

    def tasks(self) -> list[Task]:
        """Make the tasks: of each slice the projection, then of each direction what it scans."""
        count = len(self.slices)
        projections = [Task(partial(self._project, number)) for number in range(count)]
        chains = []
        for direction in range(len(self.states)):
            chain: list[Task] = []
            for number in reversed(range(count)) if direction == 1 else range(count):
                begin, end = self._span(direction, number)
                if begin >= end:
                    continue
                prepare = Task(
                    partial(self._prepare, direction, number),
                    [projections[i] for i in self._read_by(direction, number)],
                )
                scan = Task(partial(self._scan, direction, number), [prepare, *chain[-1:]])
                chain += [prepare, scan]
            chains.append(chain)
        inwards = sorted(range(count), key=lambda number: min(number, count - 1 - number))
        turns = itertools.zip_longest(*chains)
        return [projections[i] for i in inwards] + [task for turn in turns for task in turn if task]

    def last_state(self) -> MixerState:
        """Return the state behind the last token, once the tasks have run."""
        scan = self.states[0]
        assert scan is not None
        return MixerState(self.inputs.last_inputs(self.x), scan)

    def _span(self, direction: int, number: int) -> tuple[int, int]:
        """Return the begin of a slice, and its end, as far as the direction is wanted."""
        begin, end = self.slices[number]
        return begin, end if direction == 1 else min(end, self.inputs.end)

    def _read_by(self, direction: int, number: int) -> list[int]:
        """List the slices that the taps of a direction read for a slice: it, and those before it.

        Before it in the order of the direction's time; more than one if the taps are many.
        """
        begin, end = self._span(direction, number)
        reach = self.taps.shape[1] - 1
        first, last = (begin, end + reach) if direction == 1 else (begin - reach, end)
        return [i for i, (start, stop) in enumerate(self.slices) if start < last and stop > first]

    def _project(self, number: int) -> None:
        begin, end = self.slices[number]
        tokens, rows = self.inputs.tokens[:, begin:end], self._rows(begin, end)
        self.xz[:, rows] = linear(tokens, self.weight)
        if self.inputs.lengths is not None:
            zero_behind(self.x[:, rows], self.inputs.lengths - begin)

    def _rows(self, begin: int, end: int) -> slice:
        """Return where x and z of some tokens stand."""
        return slice(self.previous + begin, self.previous + end)

    def _prepare(self, direction: int, number: int) -> None:
        """Make what a direction scans in a slice."""
        begin, end = self._span(direction, number)
        x = self.x.new_empty(self.x.shape[0], end - begin, self.x.shape[2])
        rows = self._rows(begin, end)
        one = [(rows.stop, x) if i == direction else (0, None) for i in range(len(self.states))]
        convolve(self.x, self.taps, self.biases, rows.start, *zip(*one, strict=True))
        lengths = None if self.inputs.lengths is None else self.inputs.lengths - begin
        weights = self.inputs.directions[direction]
        self.scans[direction, number] = weights.scan_inputs(x, lengths, reverse=direction == 1)

    def _scan(self, direction: int, number: int) -> None:
        """Go on with the scan of a direction, through a slice."""
        begin, end = self._span(direction, number)
        scan = self.scans.pop((direction, number))
        scan = scan._replace(initial_state=self.states[direction])
        if self.inputs.positions is None:
            with self.locks[number]:
                y, z = self.y[:, begin:end], self.xz[:, self._rows(begin, end), self.x.shape[2] :]
                added, last = self.outputs[number] > 0, self.outputs[number] == len(self.states) - 1
                self.states[direction] = scan_into(scan, y, added=added, gate=z if last else None)
                self.outputs[number] += 1
        else:
            part = torch.empty_like(scan.x)
            self.states[direction] = scan_into(scan, part)
            with self.locks[0]:
                _add_at(self.inputs.positions - begin, part, self.y)


def _add_at(positions: Tensor, part: Tensor, y: Tensor) -> None:
    """Add the part's values at the positions to y; positions beyond it have none."""
    count = part.shape[1]
    within = (positions >= 0) & (positions < count)
    values = select(part, positions.clamp(0, count - 1))
    y += torch.where(within.unsqueeze(-1), values, 0)
