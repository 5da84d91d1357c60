"""The kernels as functions of tensors: layouts they can read, programs, memory, gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from muse_adapter.ops.triton_gpu.backward import gradient_summaries, gradients
from muse_adapter.ops.triton_gpu.elementary import check_offsets, checked_grid
from muse_adapter.ops.triton_gpu.forward import carries, outputs, summaries

BLOCK = 32  # channels of a program: one warp, 4 channels x 4 states of 16 a lane
CHUNK = 32  # steps from one saved state to the next
STEPS_FORWARD = 4  # steps that are read at once
STEPS_BACKWARD = 2  # also those whose states the backward pass holds in registers
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
        self.B = self._gains([side.B for side in sides])
        self.C = self._gains([side.C for side in sides])
        self.rates = self._stack([side.A.t() * math.log2(math.e) for side in sides])
        self.D = self._stack([side.D for side in sides])
        self.bias = self._stack([side.bias for side in sides])
        self.valid = (
            self.bias if lengths is None else lengths.clamp(0, max(self.lengths)).to(torch.int32)
        )
        self.masked = lengths is not None
        self.backwards = backwards
        self.softplus = softplus
        self.block = self._block()
        self.blocks = triton.cdiv(self.E, self.block)
        longest = max(self.lengths)
        self.chunks = triton.cdiv(longest, CHUNK)
        parts = self.E * self.S // self.block
        check_offsets(longest * max(self.E, self.B.time, self.C.time, parts))
        check_offsets(self.E * self.S * max(self.count, CHUNK // STEPS_BACKWARD))

    def segments(self, enough: int) -> tuple[int, int]:
        """How many segments time is cut into for that many programs, and steps in each."""
        longest = max(self.lengths)
        wanted = enough // max(1, self.blocks * self.batch * self.count)
        wanted = max(1, min(wanted, longest // SHORTEST))
        steps = triton.cdiv(max(1, triton.cdiv(longest, wanted)), CHUNK) * CHUNK
        return triton.cdiv(max(1, longest), steps), steps

    def _stack(self, tensors: list[Tensor]) -> Tensor:
        return torch.stack([tensor.to(self.dtype) for tensor in tensors])

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
        return min(block, triton.next_power_of_2(self.E))

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
            "STATES": triton.next_power_of_2(self.S),
            "BLOCK": self.block,
            "TYPE": tl.float64 if self.dtype == torch.float64 else tl.float32,
            **OPTIONS,
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
        return self.rates.new_empty(shape)

    def in_time(self, like: Sequence[Tensor], *shape: int, dtype: torch.dtype) -> list[Tensor]:
        """Memory that no kernel writes behind the lengths: there it is zero."""
        make = torch.zeros if self.masked else torch.empty
        return [make(shape or tensor.shape, dtype=dtype, device=tensor.device) for tensor in like]


def pair(tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """First and second of the tensors; the only one twice."""
    return tensors[0], tensors[-1]


def run_forward(
    plan: Plan, initial: Tensor | None, saved_states: Tensor | None
) -> tuple[list[Tensor], Tensor]:
    """Compute the outputs of each side (batch, L, E), and last states (directions, batch, S, E).

    Args:
        plan: How the scans are cut.
        initial: (directions, batch, S, E), the states before the first step; None: zeros.
        saved_states: (chunks, directions, batch, S, E) receives the state before every chunk; None:
            they are not wanted.
    """
    last = plan.empty(*plan.shape())
    entries = initial
    B, C = plan.B, plan.C
    segments, steps = plan.segments(ENOUGH_FORWARD)
    if segments > 1:
        entries = plan.empty(*plan.shape(segments))
        totals = plan.empty(segments, plan.count, plan.batch, plan.E)
        summaries[plan.grid(segments - 1)](
            *(*pair(plan.x), *pair(plan.delta), *pair(B.tensors)),
            *(plan.rates, plan.bias, plan.valid, entries, totals),
            *(*plan.sizes(steps), B.time, B.channels),
            B_CONSTANT=B.constant,
            STEPS=STEPS_FORWARD,
            **plan.flags(),
        )
        carries[plan.grid()](
            *(entries, totals, plan.rates, entries if initial is None else initial),
            *(plan.batch, segments, 0),
            GIVEN=initial is not None,
            **plan.meta(),
        )
    y = plan.in_time(plan.x, dtype=plan.dtype)
    outputs[plan.grid(segments)](
        *(*pair(plan.x), *pair(plan.delta), *pair(B.tensors), *pair(C.tensors)),
        *(plan.rates, plan.D, plan.bias, plan.valid, last if entries is None else entries),
        *(*pair(y), last if saved_states is None else saved_states, last),
        *(*plan.sizes(steps), B.time, B.channels, C.time, C.channels),
        B_CONSTANT=B.constant,
        C_CONSTANT=C.constant,
        ENTERED=entries is not None,
        SAVED=saved_states is not None,
        CHUNK=CHUNK,
        STEPS=STEPS_FORWARD,
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
) -> tuple[list[list[Tensor]], Tensor | None]:
    """Gradients of each side's seven tensors, in the order of `Side`, and of the initial states.

    Args:
        plan: How the scans are cut.
        saved_states: As `run_forward` left them.
        dy: (batch, L, E) of each side.
        dlast: (directions, batch, S, E); None: zero.
        initial: Whether the gradient of the initial states is wanted, (directions, batch, S, E).
    """
    B, C = plan.B, plan.C
    dy = [grad.contiguous() for grad in dy]
    entries = dlast
    segments, steps = plan.segments(ENOUGH_BACKWARD)
    if segments > 1:
        entries = plan.empty(*plan.shape(segments))
        totals = plan.empty(segments, plan.count, plan.batch, plan.E)
        gradient_summaries[plan.grid(segments - 1)](
            *(*pair(plan.delta), *pair(C.tensors), *pair(dy)),
            *(plan.rates, plan.bias, plan.valid, entries, totals),
            *(*plan.sizes(steps), C.time, C.channels),
            C_CONSTANT=C.constant,
            STEPS=STEPS_FORWARD,
            **plan.flags(),
        )
        carries[plan.grid()](
            *(entries, totals, plan.rates, entries if dlast is None else dlast),
            *(plan.batch, segments, 1),
            GIVEN=dlast is not None,
            **plan.meta(),
        )
    dx = plan.in_time(plan.x, dtype=plan.x[0].dtype)
    ddelta = plan.in_time(plan.delta, dtype=plan.delta[0].dtype)
    dB, dC = (_gain_gradients(plan, gains, segments) for gains in (B, C))
    drates = plan.empty(*plan.shape(segments))
    dD, dbias = (plan.empty(segments, plan.count, plan.batch, plan.E) for _ in range(2))
    dinitial = plan.empty(*plan.shape()) if initial else None
    work = plan.empty(segments, plan.count, plan.batch, CHUNK // STEPS_BACKWARD, plan.S, plan.E)
    gradients[plan.grid(segments)](
        *(*pair(plan.x), *pair(plan.delta), *pair(B.tensors), *pair(C.tensors), *pair(dy)),
        *(plan.rates, plan.D, plan.bias, plan.valid),
        *(saved_states if entries is None else entries, saved_states, work),
        *(*pair(dx), *pair(ddelta), *pair(dB), *pair(dC), drates, dD, dbias),
        dD if dinitial is None else dinitial,
        *(*plan.sizes(steps), B.time, B.channels, C.time, C.channels),
        B_CONSTANT=B.constant,
        C_CONSTANT=C.constant,
        ENTERED=entries is not None,
        INITIAL=dinitial is not None,
        CHUNK=CHUNK,
        STEPS=STEPS_BACKWARD,
        WIDE=STEPS_FORWARD,
        **plan.flags(),
    )
    # d exp(dt A) / dA is what the kernel gives: it differentiates 2**(dt rate) as if it were exp.
    dA = drates.sum((0, 2)).transpose(1, 2)
    dD, dbias = dD.sum((0, 2)), dbias.sum((0, 2))
    grads = []
    for side in range(plan.count):
        dB_side, dC_side = (
            part.sum(0).t()[None, None] if gains.constant else part.sum(0)
            for gains, part in ((B, dB[side]), (C, dC[side]))
        )
        grads.append([dx[side], ddelta[side], dA[side], dB_side, dC_side, dD[side], dbias[side]])
    return grads, dinitial


def _gain_gradients(plan: Plan, gains: Gains, segments: int) -> list[Tensor]:
    """Memory for the parts of the gradients of B or C, which are summed over the first dimension.

    No two programs write to one place, and the sum has a fixed order.
    """
    if gains.constant:
        shape = (segments * plan.batch, plan.S, plan.E)
        return [plan.empty(*shape) for _ in range(plan.count)]
    parts = triton.cdiv(gains.channels, plan.block)
    return [
        plan.in_time([tensor], parts, *tensor.shape, dtype=plan.dtype)[0]
        for tensor in gains.tensors
    ]
