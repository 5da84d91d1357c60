"""The kernels as functions of tensors: layouts they can read, programs, memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton.language as tl
from torch import Tensor

from muse_adapter.ops.triton_gpu.backward import gradient_summaries, gradients
from muse_adapter.ops.triton_gpu.elementary import check_offsets, checked_grid
from muse_adapter.ops.triton_gpu.forward import carries, outputs, summaries
from muse_adapter.ops.triton_gpu.gradient_parts import Gradients, gain_parts, summed
from muse_adapter.ops.triton_gpu.launch import cdiv, launch, next_power_of_2

BLOCK = 32  # channels of a program: one warp, 4 channels x 4 states of 16 a lane
CHUNK = 32  # steps from one saved state to the next
STEPS_FORWARD = 4  # steps that are read at once
STEPS_BACKWARD = 2  # also those whose states the backward pass holds in registers
AHEAD = 3  # tiles of steps at once: one is worked on, the others are on their way
# Programs that fill a large chip (132 processors with 4 schedulers): the forward kernels fit on a
# scheduler 4 times, the backward kernel twice. With fewer, time is cut into segments. Constants, so
# that results do not depend on the card.
ENOUGH_FORWARD, ENOUGH_BACKWARD = 2048, 1024
SHORTEST = 2 * CHUNK  # fewer steps in a segment are not worth the two further launches

# One warp a program, multiplications and additions fused.
OPTIONS = {"num_warps": 1, "enable_fp_fusion": True}


class Side(NamedTuple):
    """The inputs of one direction, as in `ScanInputs`, D and bias given.

    Attributes:
        x, delta: (batch, L, E).
        A: (E, S).
        B, C: (batch, L, G, S) or (1, 1, E, S).
        D, bias: (E,).
    """

    x: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    bias: Tensor


class Gains(NamedTuple):
    """B or C of all sides as the kernels read them.

    Attributes:
        tensors: one for each side.
        constant: whether they are constant in time, (S, E).
        time: elements from one position to the next.
        channels: channels in a group.
    """

    tensors: list[Tensor]
    constant: bool
    time: int
    channels: int


class Plan:
    """How one or two scans over the same videos are cut into programs.

    Args:
        sides: the directions; two of them differ in L only.
        backwards: bit d: direction d runs backwards.
        softplus: pass the step sizes through softplus.
        lengths: (batch,) or None.
    """

    def __init__(
        self, sides: Sequence[Side], backwards: int, softplus: bool, lengths: Tensor | None
    ) -> None:
        x = sides[0].x
        self.batch, _, self.E = x.shape
        self.S = sides[0].A.shape[1]
        self.lengths = [side.x.shape[1] for side in sides]
        self.count = len(sides)
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.x = [side.x.contiguous() for side in sides]
        self.delta = [side.delta.contiguous() for side in sides]
        gains = [gain for side in sides for gain in (side.B, side.C)]
        self.stacked = alike(gains)
        self.gain_types = [gain.dtype for gain in gains]  # which their gradients have, too
        # In the type of the state: what is narrower than 4 bytes the kernels cannot read ahead.
        gains = self._widened(gains)
        self.B, self.C = self._gains(gains[::2]), self._gains(gains[1::2])
        self.A = self._stack([side.A.t() for side in sides])
        self.D = self._alike([side.D for side in sides])
        self.bias = self._alike([side.bias for side in sides])
        self.valid = (
            self.A if lengths is None else lengths.clamp(0, max(self.lengths)).to(torch.int32)
        )
        self.masked = lengths is not None
        self.backwards = backwards
        self.softplus = softplus
        self.block = self._block()
        self.blocks = cdiv(self.E, self.block)
        longest = max(self.lengths)
        self.chunks = cdiv(longest, CHUNK)
        parts = self.E * self.S // self.block
        check_offsets(longest * max(self.E, self.B.time, self.C.time, parts))
        check_offsets(self.E * self.S * max(self.count, CHUNK // STEPS_BACKWARD))

    def segments(self, enough: int) -> tuple[int, int]:
        """How many segments time is cut into for that many programs, and steps in each."""
        longest = max(self.lengths)
        wanted = enough // max(1, self.blocks * self.batch * self.count)
        wanted = max(1, min(wanted, longest // SHORTEST))
        steps = cdiv(max(1, cdiv(longest, wanted)), CHUNK) * CHUNK
        return cdiv(max(1, longest), steps), steps

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        # Even a `to` that does nothing takes its time.
        return torch.stack([t if t.dtype == self.dtype else t.to(self.dtype) for t in tensors])

    def _widened(self, gains: list[Tensor]) -> list[Tensor]:
        """B and C of all sides in the type of the state."""
        if all(gain.dtype == self.dtype for gain in gains):
            return gains
        if self.stacked:  # two operations instead of one for each
            return list(torch.stack(gains).to(self.dtype).unbind(0))
        return [gain.to(self.dtype) for gain in gains]

    def _alike(self, rows: list[Tensor]) -> list[Tensor]:
        """Rows of numbers that a kernel reads as one type."""
        if rows[0].dtype != rows[-1].dtype:
            rows = [row.to(self.dtype) for row in rows]
        return [row.contiguous() for row in rows]

    def _gains(self, gains: list[Tensor]) -> Gains:
        groups, states = gains[0].shape[2:]
        # Constant in time means (1, 1, E, S); one video of one step looks the same where G is E.
        if all(gain.shape[:2] == (1, 1) for gain in gains) and groups == self.E:
            return Gains([gain[0, 0].t().contiguous() for gain in gains], True, 0, 1)
        times = {gain.stride(1) for gain in gains}
        regular = len(times) == 1 and all(
            gain.stride(3) == 1
            and (groups == 1 or gain.stride(2) == states)
            and gain.stride(0) == gain.shape[1] * gain.stride(1)
            for gain in gains
        )
        # Not the stride of what is contiguous: that of a single position means nothing.
        time = gains[0].stride(1) if regular else groups * states
        return Gains(
            gains if regular else [gain.contiguous() for gain in gains],
            *(False, time, self.E // groups),
        )

    def _block(self) -> int:
        """Channels of a program: they must all be of one group of B, and of one of C."""
        block = BLOCK
        for gains in (self.B, self.C):
            if not gains.constant and gains.channels != self.E:
                block = math.gcd(block, gains.channels)
        return min(block, next_power_of_2(self.E))

    def shape(self, *sizes: int) -> list[int]:
        """Return a shape of the kernels: sizes, directions, batch, S, E."""
        return [*sizes, self.count, self.batch, self.S, self.E]

    def grid(self, *segments: int) -> tuple[int, ...]:
        """Programs: blocks of all sides, then segments if there are any."""
        return checked_grid(self.blocks * self.count * self.batch, *segments)

    def sizes(self, steps: int) -> tuple[int, ...]:
        """Return the sizes that all kernels with segments take."""
        return (self.lengths[0], self.lengths[-1], self.batch, steps, self.backwards)

    def meta(self) -> dict[str, Any]:
        """Return the constants that all kernels take."""
        return {
            "E": self.E,
            "S": self.S,
            "STATES": next_power_of_2(self.S),
            "BLOCK": self.block,
            "TYPE": tl.float64 if self.dtype == torch.float64 else tl.float32,
        }

    def flags(self) -> dict[str, Any]:
        """Return the constants of kernels that walk through time."""
        return {"SOFTPLUS": self.softplus, "MASKED": self.masked, **self.meta()}

    def states(self, states: Sequence[Tensor]) -> Tensor | None:
        """States of each side (batch, E, S), as the kernels read them; None of none."""
        if not states:
            return None
        return self._stack([state.transpose(1, 2) for state in states])

    def empty(self, *shape: int) -> Tensor:
        """Memory in the type of the state."""
        return torch.empty(shape, dtype=self.dtype, device=self.A.device)

    def parts(self, *shape: int) -> Tensor:
        """Memory for sums over what no kernel writes behind the lengths: there it is zero."""
        make = torch.zeros if self.masked else torch.empty
        return make(shape, dtype=self.dtype, device=self.A.device)

    def in_time(self, like: Sequence[Tensor], *shape: int, dtype: torch.dtype) -> list[Tensor]:
        """Memory that no kernel writes behind the lengths: there it is zero."""
        make = torch.zeros if self.masked else torch.empty
        return [make(shape or tensor.shape, dtype=dtype, device=tensor.device) for tensor in like]


def pair(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """First and second of the tensors; the only one twice."""
    return tensors[0], tensors[-1]


def run_forward(
    plan: Plan, initial: Tensor | None, saved_states: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Compute the outputs (batch, L, E) and the last states (batch, E, S) of each side.

    Args:
        plan: How the scans are cut.
        initial: (directions, batch, S, E), the states before the first step; None: zeros.
        saved_states: (chunks, directions, batch, S, E) receives the state before every chunk; None:
            they are not wanted.
    """
    last = [plan.empty(plan.batch, plan.E, plan.S) for _ in range(plan.count)]
    entries = initial
    B, C, (segments, steps) = plan.B, plan.C, plan.segments(ENOUGH_FORWARD)
    if segments > 1:
        entries = plan.empty(*plan.shape(segments))
        totals = plan.empty(segments, plan.count, plan.batch, plan.E)
        launch(
            *(summaries, plan.grid(segments - 1), OPTIONS),
            (
                *(*pair(plan.x), *pair(plan.delta), *pair(B.tensors), plan.A, *pair(plan.bias)),
                *(plan.valid, entries, totals),
            ),
            *(plan.sizes(steps), (B.time, B.channels)),
            B_CONSTANT=B.constant,
            STEPS=STEPS_FORWARD,
            AHEAD=AHEAD,
            **plan.flags(),
        )
        launch(
            *(carries, plan.grid(), OPTIONS),
            (entries, totals, plan.A, entries if initial is None else initial),
            (plan.batch, segments, 0),
            GIVEN=initial is not None,
            **plan.meta(),
        )
    y = plan.in_time(plan.x, dtype=plan.dtype)
    launch(
        *(outputs, plan.grid(segments), OPTIONS),
        (
            *(*pair(plan.x), *pair(plan.delta), *pair(B.tensors), *pair(C.tensors), plan.A),
            *(*pair(plan.D), *pair(plan.bias), plan.valid, plan.A if entries is None else entries),
            *(*pair(y), plan.A if saved_states is None else saved_states, *pair(last)),
        ),
        *(plan.sizes(steps), (B.time, B.channels, C.time, C.channels)),
        B_CONSTANT=B.constant,
        C_CONSTANT=C.constant,
        ENTERED=entries is not None,
        SAVED=saved_states is not None,
        CHUNK=CHUNK,
        STEPS=STEPS_FORWARD,
        AHEAD=AHEAD,
        **plan.flags(),
    )
    return y, last


def run_backward(
    plan: Plan,
    saved_states: Tensor,
    dy: Sequence[Tensor],
    dlast: Tensor | None,
    *,
    initial: bool,
) -> Gradients:
    """Compute all gradients.

    Args:
        plan: How the scans are cut.
        saved_states: As `run_forward` left them.
        dy: (batch, L, E) of each side.
        dlast: (directions, batch, S, E); None: zero.
        initial: Whether the gradient of the initial states is wanted, (directions, batch, S, E).
    """
    B, C = plan.B, plan.C
    dy = [grad.to(plan.dtype).contiguous() for grad in dy]
    entries = dlast
    segments, steps = plan.segments(ENOUGH_BACKWARD)
    if segments > 1:
        entries = plan.empty(*plan.shape(segments))
        totals = plan.empty(segments, plan.count, plan.batch, plan.E)
        launch(
            *(gradient_summaries, plan.grid(segments - 1), OPTIONS),
            (
                *(*pair(plan.delta), *pair(C.tensors), *pair(dy), plan.A, *pair(plan.bias)),
                *(plan.valid, entries, totals),
            ),
            *(plan.sizes(steps), (C.time, C.channels)),
            C_CONSTANT=C.constant,
            STEPS=STEPS_FORWARD,
            AHEAD=AHEAD,
            **plan.flags(),
        )
        launch(
            *(carries, plan.grid(), OPTIONS),
            (entries, totals, plan.A, entries if dlast is None else dlast),
            (plan.batch, segments, 1),
            GIVEN=dlast is not None,
            **plan.meta(),
        )
    dx = plan.in_time(plan.x, dtype=plan.x[0].dtype)
    ddelta = plan.in_time(plan.delta, dtype=plan.delta[0].dtype)
    gains = gain_parts(plan, segments)
    dweights = plan.empty(segments, plan.count, plan.batch, plan.E * (plan.S + 2))
    dinitial = plan.empty(*plan.shape()) if initial else None
    work = plan.empty(segments, plan.count, plan.batch, CHUNK // STEPS_BACKWARD, plan.S, plan.E)
    launch(
        *(gradients, plan.grid(segments), OPTIONS),
        (
            *(*pair(plan.x), *pair(plan.delta), *pair(B.tensors), *pair(C.tensors), *pair(dy)),
            *(plan.A, *pair(plan.D), *pair(plan.bias), plan.valid),
            *(saved_states if entries is None else entries, saved_states, work),
            *(*pair(dx), *pair(ddelta), gains[0], gains[-2], gains[1], gains[-1], dweights),
            dweights if dinitial is None else dinitial,
        ),
        *(plan.sizes(steps), (B.time, B.channels, C.time, C.channels)),
        B_CONSTANT=B.constant,
        C_CONSTANT=C.constant,
        ENTERED=entries is not None,
        INITIAL=dinitial is not None,
        CHUNK=CHUNK,
        STEPS=STEPS_BACKWARD,
        WIDE=STEPS_FORWARD,
        AHEAD=AHEAD,
        **plan.flags(),
    )
    return Gradients([*dx, *ddelta], summed(plan, gains), dweights.sum((0, 2)), dinitial)


def alike(tensors: Sequence[Tensor]) -> bool:
    """Whether the tensors have one shape and type."""
    first = tensors[0]
    return all(t.shape == first.shape and t.dtype == first.dtype for t in tensors)
