"""The states of a block in registers, as long as a chunk takes.

In memory they are written and read again at each step, and every step waits for the one before it.
The compiler must know their number: it is the usual one.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from muse_adapter.ops.numba_cpu.elementary import power_of_product
from muse_adapter.ops.numba_cpu.simd import (
    WIDTH,
    Lanes,
    broadcast,
    call_intrinsic,
    constant,
    load_vector,
    store_vector,
)

STATES = 16
_INDEX = ir.IntType(64)


@intrinsic
def in_registers(context: Any, states: Any, unit: Any) -> Any:
    """Whether so many states, in the type of the scalar `unit`, are held so."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        if unit != types.float32:  # twice as many registers, and exponentials that are calls
            return context.get_constant(types.boolean, False)
        return builder.icmp_signed("==", arguments[0], _INDEX(STATES))

    return types.boolean(types.int64, unit), lowered


@intrinsic
def load_states(context: Any, source: Any) -> Any:
    """The states of a block."""
    kind = types.UniTuple(Lanes(source.dtype), STATES)

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        places = (_INDEX(s * WIDTH) for s in range(STATES))
        values = [load_vector(context, builder, source, arguments[0], place) for place in places]
        return context.make_tuple(builder, kind, values)

    return kind(source), lowered


@intrinsic
def store_states(context: Any, target: Any, states: Any) -> Any:
    """Write the states of a block."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        for s in range(STATES):
            value = builder.extract_value(arguments[1], s)
            store_vector(context, builder, target, arguments[0], _INDEX(s * WIDTH), value)
        return context.get_dummy_value()

    return types.void(target, states), lowered


@intrinsic
def step_in_registers(
    context: Any, dt: Any, driven: Any, result: Any, states: Any, rates: Any, b: Any, c: Any
) -> Any:
    """Bring all states one step further, and add what they give to `result`.

    Args:
        dt: the step; no exponent is beyond `elementary.CALM`.
        driven: dt times the input.
        states: as of `load_states`.
        rates: where those of the block stand.
        b, c: where the values of B and C stand, one of a state after the other.

    Returns:
        (result, states).
    """
    kind = types.Tuple((result, states))

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        step, push, total, before, rates_at, *gains_at = arguments
        number = step.type.element
        after = []
        totals = [total, constant(step.type, 0.0)]  # in one alone each term would wait for another
        for s in range(STATES):
            rate = load_vector(context, builder, rates, rates_at, _INDEX(s * WIDTH))
            gain_b, gain_c = (
                broadcast(
                    builder,
                    builder.load(builder.gep(at, [_INDEX(s)], source_etype=number), typ=number),
                )
                for at in gains_at
            )
            left = builder.fmul(
                power_of_product(builder, step, rate), builder.extract_value(before, s)
            )
            after.append(call_intrinsic(builder, "fmuladd", push, gain_b, left))
            totals[s % 2] = call_intrinsic(builder, "fmuladd", after[-1], gain_c, totals[s % 2])
        later = context.make_tuple(builder, states, after)
        return context.make_tuple(builder, kind, [builder.fadd(*totals), later])

    return kind(dt, driven, result, states, rates, b, c), lowered
