"""A vector register as a numba type, so that kernels say which loop is vectorised.

`Lanes` holds WIDTH numbers of one float type. `+`, `-`, `*`, `/` work between two of them or with a
scalar; LLVM splits a register that is wider than the machine's. Leaving the choice to LLVM's loop
vectoriser costs a check for overlapping arrays in front of every inner loop, and its success would
depend on the version.

The only fast-math permission given is `contract` (a * b + c in one rounding): NaN and infinity keep
their meaning, and sums keep the order in which they are written.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.extending import intrinsic, lower_builtin, models, register_model, type_callable

WIDTH = 16
LOG2E = math.log2(math.e)
_FLAGS = ("contract",)

inline = numba.njit(forceinline=True, error_model="numpy")


class Lanes(types.Type):
    """WIDTH numbers of type `dtype`."""

    def __init__(self, dtype: types.Float) -> None:
        self.dtype = dtype
        super().__init__(name=f"lanes({dtype})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, lanes: Lanes) -> None:
        element = manager.lookup(lanes.dtype).get_value_type()
        super().__init__(manager, lanes, ir.VectorType(element, WIDTH))


def constant(vector: ir.VectorType, value: float) -> ir.Constant:
    """Return a vector with the number in every lane."""
    return ir.Constant(vector, [float(value)] * WIDTH)


def broadcast(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """Return a vector with the number in every lane."""
    vector = ir.VectorType(value.type, WIDTH)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first,
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH),
    )


def call_intrinsic(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
    """Call LLVM's own function of that name, from vectors to a vector."""
    vector = arguments[0].type
    element = "f32" if isinstance(vector.element, ir.FloatType) else "f64"
    kind = ir.FunctionType(vector, [vector] * len(arguments))
    function = builder.module.declare_intrinsic(f"llvm.{name}.v{WIDTH}{element}", (), kind)
    return builder.call(function, arguments)


def _define(operation: Callable[..., Any], method: str) -> None:
    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        def cast(value: ir.Value, kind: Any) -> ir.Value:
            if isinstance(kind, Lanes):
                return value
            scalar = context.cast(builder, value, kind, signature.return_type.dtype)
            return broadcast(builder, scalar)

        left, right = (cast(v, k) for v, k in zip(arguments, signature.args, strict=True))
        return getattr(builder, method)(left, right, flags=_FLAGS)

    for kinds in ((Lanes, Lanes), (Lanes, types.Float), (types.Float, Lanes)):
        lower_builtin(operation, *kinds)(lowered)

    @type_callable(operation)
    def typer(context: Any) -> Callable[..., Any]:
        def typed(left: Any, right: Any) -> Any:
            if isinstance(left, Lanes) and (right == left or isinstance(right, types.Float)):
                return left
            if isinstance(right, Lanes) and isinstance(left, types.Float):
                return right
            return None

        return typed


_define(operator.add, "fadd")
_define(operator.sub, "fsub")
_define(operator.mul, "fmul")
_define(operator.truediv, "fdiv")


@intrinsic
def pointer(context: Any, address: Any, like: Any) -> Any:
    """Return a pointer to `address` (an integer), to numbers of the type of the scalar `like`."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        kind = context.get_value_type(signature.return_type)
        return builder.inttoptr(arguments[0], kind)

    return types.CPointer(types.unliteral(like))(address, like), lowered


@intrinsic
def advance(context: Any, source: Any, count: Any) -> Any:
    """Return the pointer to source[count]."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        element = context.get_value_type(source.dtype)
        return builder.gep(arguments[0], [arguments[1]], source_etype=element)

    return source(source, types.int64), lowered


def _vector_place(
    context: Any, builder: ir.IRBuilder, source: Any, place: ir.Value, index: ir.Value
) -> Any:
    element = context.get_value_type(source.dtype)
    place = builder.gep(place, [index], source_etype=element)
    vector = ir.VectorType(element, WIDTH)
    # Rows of the callers' tensors need not begin at a multiple of a register.
    return builder.bitcast(place, vector.as_pointer()), vector, context.get_abi_alignment(element)


def load_vector(
    context: Any, builder: ir.IRBuilder, source: Any, place: ir.Value, index: ir.Value
) -> ir.Value:
    """Load WIDTH numbers from place[index] on; `source` is the type of the pointer."""
    place, vector, align = _vector_place(context, builder, source, place, index)
    return builder.load(place, align=align, typ=vector)


def store_vector(
    context: Any,
    builder: ir.IRBuilder,
    target: Any,
    place: ir.Value,
    index: ir.Value,
    value: ir.Value,
) -> None:
    """Write WIDTH numbers from place[index] on; `target` is the type of the pointer."""
    place, _, align = _vector_place(context, builder, target, place, index)
    builder.store(value, place, align=align)


@intrinsic
def load(context: Any, source: Any, index: Any) -> Any:
    """Load WIDTH numbers from source[index] on."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return load_vector(context, builder, source, *arguments)

    return Lanes(source.dtype)(source, types.int64), lowered


@intrinsic
def store(context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write WIDTH numbers from target[index] on."""
    if value != Lanes(target.dtype):
        return None

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        store_vector(context, builder, target, *arguments)
        return context.get_dummy_value()

    return types.void(target, types.int64, value), lowered


@intrinsic
def splat(context: Any, value: Any) -> Any:
    """Return a vector with the scalar `value` in every lane."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return broadcast(builder, arguments[0])

    return Lanes(value)(value), lowered


def merge(builder: ir.IRBuilder, merged: list[ir.Value | None], value: ir.Value) -> None:
    """Take the next of WIDTH vectors, whose sums over their lanes become one vector, merged[-1].

    Halves are added to halves, of two vectors at once: as in a binary number that is counted up,
    merged[k] is what 2**k vectors have become, or None. The order is fixed.
    """
    level = 0
    while level < len(merged) and merged[level] is not None:
        part = WIDTH >> level  # lanes that belong to one of the vectors
        picked = [lane for lane in range(2 * WIDTH) if lane % part < part // 2]
        masks = [
            ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [lane + half for lane in picked])
            for half in (0, part // 2)
        ]
        left, merged[level] = merged[level], None
        value = builder.fadd(*(builder.shuffle_vector(left, value, mask) for mask in masks))
        level += 1
    merged[level:level] = [] if level < len(merged) else [None]
    merged[level] = value


@intrinsic
def lane_sums(context: Any, source: Any, index: Any) -> Any:
    """Sum WIDTH vectors from source[index] on, each over its lanes, into one vector."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        merged: list[ir.Value | None] = []
        for row in range(WIDTH):
            index = builder.add(arguments[1], arguments[1].type(row * WIDTH))
            merge(builder, merged, load_vector(context, builder, source, arguments[0], index))
        return merged[-1]

    return Lanes(source.dtype)(source, types.int64), lowered


@intrinsic
def lane_sum(context: Any, value: Any) -> Any:
    """Sum a vector over its lanes, halves added to halves."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (vector,), count = arguments, WIDTH
        while count > 1:
            count //= 2
            low, high = (
                ir.Constant(ir.VectorType(ir.IntType(32), count), list(range(at, at + count)))
                for at in (0, count)
            )
            vector = builder.fadd(
                *(builder.shuffle_vector(vector, vector, lanes) for lanes in (low, high))
            )
        return builder.extract_element(vector, ir.IntType(32)(0))

    return value.dtype(value), lowered


@intrinsic
def magnitude(context: Any, value: Any) -> Any:
    """Return absolute values."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return call_intrinsic(builder, "fabs", *arguments)

    return value(value), lowered


@intrinsic
def square_root(context: Any, value: Any) -> Any:
    """Return square roots."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return call_intrinsic(builder, "sqrt", *arguments)

    return value(value), lowered


@intrinsic
def where_above(context: Any, value: Any, bound: Any, above: Any, otherwise: Any) -> Any:
    """Return `above` in lanes where value > bound (a number), else `otherwise`, also for NaN."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        number = context.cast(builder, arguments[1], signature.args[1], signature.args[0].dtype)
        test = builder.fcmp_ordered(">", arguments[0], broadcast(builder, number))
        return builder.select(test, arguments[2], arguments[3])

    return value(value, bound, value, value), lowered
