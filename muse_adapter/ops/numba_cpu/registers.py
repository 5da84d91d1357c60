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
    merge,
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
        step, push, total, before, rates_at, b_at, c_at = arguments
        after = []
        totals = [total, constant(step.type, 0.0)]  # in one alone each term would wait for another
        for s in range(STATES):
            rate = load_vector(context, builder, rates, rates_at, _INDEX(s * WIDTH))
            left = builder.fmul(
                power_of_product(builder, step, rate), builder.extract_value(before, s)
            )
            after.append(_add_product(builder, push, _gain(context, builder, b, b_at, s), left))
            gain = _gain(context, builder, c, c_at, s)
            totals[s % 2] = _add_product(builder, after[-1], gain, totals[s % 2])
        later = context.make_tuple(builder, states, after)
        return context.make_tuple(builder, kind, [builder.fadd(*totals), later])

    return kind(dt, driven, result, states, rates, b, c), lowered


@intrinsic
def retake_in_registers(
    context: Any, dt: Any, driven: Any, states: Any, rates: Any, b: Any, h: Any, decays: Any
) -> Any:
    """Bring all states one step further, and write them to `h` and their decays to `decays`.

    Arguments as in `step_in_registers`. Returns the states.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        step, push, before, rates_at, b_at, h_at, decays_at = arguments
        after = []
        for s in range(STATES):
            place = _INDEX(s * WIDTH)
            rate = load_vector(context, builder, rates, rates_at, place)
            decay = power_of_product(builder, step, rate)
            store_vector(context, builder, decays, decays_at, place, decay)
            left = builder.fmul(decay, builder.extract_value(before, s))
            after.append(_add_product(builder, push, _gain(context, builder, b, b_at, s), left))
            store_vector(context, builder, h, h_at, place, after[-1])
        return context.make_tuple(builder, states, after)

    return states(dt, driven, states, rates, b, h, decays), lowered


@intrinsic
def step_back_in_registers(
    context: Any,
    above: Any,
    dt: Any,
    driven: Any,
    states: Any,
    rates: Any,
    drates: Any,
    b: Any,
    c: Any,
    h: Any,
    decays: Any,
) -> Any:
    """Take the gradient of all states one step back.

    Args:
        above: the gradient of the output.
        dt, driven: as in `step_in_registers`.
        states: the gradients of the states after the step, as far as later steps give them.
        rates, b, c: as in `step_in_registers`.
        drates: where the gradients of the rates stand, which the step adds to.
        h, decays: where `retake_in_registers` has written the states before the step, in front of
            those after it, and the decays.

    Returns:
        (gradient of `driven`, of dt through the exponents as if they were those of e, of the values
        of B, of C, and of the states before the step).
    """
    kind = types.Tuple((above, above, above, above, states))

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        given, step, push, later, rates_at, drates_at, b_at, c_at, h_at, decays_at = arguments
        d_driven = d_exponent = constant(step.type, 0.0)
        d_b: list[ir.Value | None] = []
        d_c: list[ir.Value | None] = []
        before = []
        for s in range(STATES):
            here, after = _INDEX(s * WIDTH), _INDEX((STATES + s) * WIDTH)
            d_state = _add_product(
                builder, given, _gain(context, builder, c, c_at, s), builder.extract_value(later, s)
            )
            d_driven = _add_product(builder, d_state, _gain(context, builder, b, b_at, s), d_driven)
            merge(builder, d_b, builder.fmul(d_state, push))
            merge(builder, d_c, builder.fmul(given, load_vector(context, builder, h, h_at, after)))
            decay = load_vector(context, builder, decays, decays_at, here)
            before.append(builder.fmul(d_state, decay))
            d_decay = builder.fmul(before[-1], load_vector(context, builder, h, h_at, here))
            rate = load_vector(context, builder, rates, rates_at, here)
            d_exponent = _add_product(builder, d_decay, rate, d_exponent)
            d_rate = load_vector(context, builder, drates, drates_at, here)
            d_rate = _add_product(builder, d_decay, step, d_rate)
            store_vector(context, builder, drates, drates_at, here, d_rate)
        earlier = context.make_tuple(builder, states, before)
        values = [d_driven, d_exponent, d_b[-1], d_c[-1], earlier]
        return context.make_tuple(builder, kind, values)

    return kind(above, dt, driven, states, rates, drates, b, c, h, decays), lowered


def _gain(context: Any, builder: ir.IRBuilder, source: Any, place: ir.Value, s: int) -> ir.Value:
    """The value of B or C of state s, in every lane; `source` is the type of the pointer."""
    number = context.get_value_type(source.dtype)
    place = builder.gep(place, [_INDEX(s)], source_etype=number)
    return broadcast(builder, builder.load(place, typ=number))


def _add_product(
    builder: ir.IRBuilder, left: ir.Value, right: ir.Value, total: ir.Value
) -> ir.Value:
    return call_intrinsic(builder, "fmuladd", left, right, total)
