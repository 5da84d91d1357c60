"""What kernels share: functions of single numbers, and where a program's numbers lie."""

from __future__ import annotations

import triton
import triton.language as tl

# Names that a kernel may read must be constants.
LN2 = tl.constexpr(0.6931471805599453)
LOG2E = tl.constexpr(1.4426950408889634)

# Arguments that change from call to call: no kernel is compiled anew for a 1 or a multiple of 16.
VARYING = {
    "do_not_specialize": [
        *("L0", "L1", "L", "P", "stop"),
        *("batch", "segment", "segments", "backwards", "from_last"),
    ]
}


# Offsets within a video are 32-bit integers in the kernels, with room for steps behind its end.
MOST_NUMBERS = (1 << 31) - (1 << 20)


def check_offsets(numbers: int) -> None:
    """Refuse a video of more numbers than the kernels can count."""
    if numbers > MOST_NUMBERS:
        raise ValueError(f"a video must have at most {MOST_NUMBERS} numbers, got {numbers}")


def checked_grid(*programs: int) -> tuple[int, ...]:
    """Return the grid, if CUDA can launch so many programs along each of its axes."""
    first, *others = programs
    if first >= 1 << 31 or max(others, default=0) > 65_535:
        raise ValueError(f"a grid of {programs} programs is beyond CUDA's limits: use fewer videos")
    return programs


@triton.jit
def softplus(value):
    """log(1 + exp(value)), exact to rounding in float32 and float64 (Triton has no log1p)."""
    small = tl.exp2(-tl.abs(value) * LOG2E)
    if value.dtype == tl.float64:
        # log(1 + u) = log(w) u / (w - 1), where w is 1 + u as it was rounded (Kahan).
        total = 1.0 + small
        rounded = tl.where(total == 1.0, 1.0, total - 1.0)
        log = tl.where(total == 1.0, small, tl.log(total) * (small / rounded))
    else:
        # log(1 + u) = 2 artanh(r) with r = u / (2 + u) < 1/3: a few terms of its series, a third of
        # the instructions.
        r = small / (2.0 + small)
        q = r * r
        series = 1.0 / 11 + q * (1.0 / 13)
        series = 1.0 / 7 + q * (1.0 / 9 + q * series)
        log = 2.0 * r * (1.0 + q * (1.0 / 3 + q * (1.0 / 5 + q * series)))
    return tl.maximum(value, 0.0) + log


@triton.jit
def sigmoid(value):
    """1 / (1 + exp(-value)), also where exp(-value) is infinite."""
    small = tl.exp2(-tl.abs(value) * LOG2E)
    return tl.where(value >= 0.0, 1.0, small) / (1.0 + small)


@triton.jit
def either(second, a, b):
    """Return `a` in the first direction, `b` in the second."""
    return tl.where(second, b, a)


@triton.jit
def span(lengths, L0, L1, side, batch, backwards, MASKED: tl.constexpr):
    """Where a video's steps lie: L, how many are valid, position of step 0, positions a step."""
    direction = side // batch
    length = either(direction == 1, L0, L1)
    valid = length
    if MASKED:
        valid = tl.minimum(tl.load(lengths + side % batch), length)
    reverse = (backwards >> direction) & 1
    return length, valid, reverse * (valid - 1), 1 - 2 * reverse


@triton.jit
def place(E: tl.constexpr, BLOCK: tl.constexpr):
    """Return a program's block of channels, its side, and how many sides there are.

    Both are on the first axis of the grid, which alone may have more than 65,535 programs.
    """
    blocks: tl.constexpr = (E + BLOCK - 1) // BLOCK
    return tl.program_id(0) % blocks, tl.program_id(0) // blocks, tl.num_programs(0) // blocks


@triton.jit
def tiles(block, E: tl.constexpr, S: tl.constexpr, STATES: tl.constexpr, BLOCK: tl.constexpr):
    """Return a block's channels and states: numbers, masks, offsets, mask of the (S, E) tile."""
    e = block * BLOCK + tl.arange(0, BLOCK)
    s = tl.arange(0, STATES)
    if E % BLOCK == 0:
        live = tl.full([BLOCK], True, tl.int1)  # the compiler drops such a mask
    else:
        live = e < E
    stated = s < S
    return e, s, live, stated, s[:, None] * E + e[None, :], stated[:, None] & live[None, :]


@triton.jit
def channels_first(e, s, S: tl.constexpr):
    """Offsets of a tile (STATES, BLOCK) in what lies as (E, S)."""
    return e[None, :] * S + s[:, None]


@triton.jit
def weights_at(row, e, live, TYPE: tl.constexpr):
    """Load D or bias of a program's channels, (BLOCK,)."""
    return tl.load(row + e, mask=live, other=0.0).to(TYPE)


@triton.jit
def gain_rows(
    gain, block, video, length, time, channels,
    CONSTANT: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Address of B or C of the program's video and group at position 0; (S, E) as it is."""
    if CONSTANT:
        return gain
    return gain + video * length * time + block * BLOCK // channels * S


@triton.jit
def part_rows(
    gradient, block, video, batch, length, channels,
    E: tl.constexpr, S: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Address of the program's part of the gradient of B or C, and elements between positions."""
    group = block * BLOCK // channels
    within = block - group * (channels // BLOCK)
    time = E // channels * S
    return gradient + (within * batch + video) * length * time + group * S, time
