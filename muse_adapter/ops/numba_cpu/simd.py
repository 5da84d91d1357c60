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


def _constant(vector: ir.VectorType, value: float) -> ir.Constant:
    return ir.Constant(vector, [float(value)] * WIDTH)


def _broadcast(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    vector = ir.VectorType(value.type, WIDTH)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(
        first,
        ir.Constant(vector, ir.Undefined),
        ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [0] * WIDTH),
    )


def _call(builder: ir.IRBuilder, name: str, *arguments: ir.Value) -> ir.Value:
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
            return _broadcast(builder, scalar)

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
    """The memory at `address` (an integer) as numbers of the type of the scalar `like`."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        kind = context.get_value_type(signature.return_type)
        return builder.inttoptr(arguments[0], kind)

    return types.CPointer(types.unliteral(like))(address, like), lowered


@intrinsic
def advance(context: Any, source: Any, count: Any) -> Any:
    """The pointer to source[count]."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        element = context.get_value_type(source.dtype)
        return builder.gep(arguments[0], [arguments[1]], source_etype=element)

    return source(source, types.int64), lowered


def _vector_pointer(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> Any:
    dtype = signature.args[0].dtype
    element = context.get_value_type(dtype)
    place = builder.gep(arguments[0], [arguments[1]], source_etype=element)
    vector = ir.VectorType(element, WIDTH)
    # Rows of the callers' tensors need not begin at a multiple of a register.
    return builder.bitcast(place, vector.as_pointer()), vector, context.get_abi_alignment(element)


@intrinsic
def load(context: Any, source: Any, index: Any) -> Any:
    """The WIDTH numbers from source[index] on."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place, vector, align = _vector_pointer(context, builder, signature, arguments)
        return builder.load(place, align=align, typ=vector)

    return Lanes(source.dtype)(source, types.int64), lowered


@intrinsic
def store(context: Any, target: Any, index: Any, value: Any) -> Any:
    """Write WIDTH numbers from target[index] on."""
    if value != Lanes(target.dtype):
        return None

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place, _, align = _vector_pointer(context, builder, signature, arguments)
        builder.store(arguments[2], place, align=align)
        return context.get_dummy_value()

    return types.void(target, types.int64, value), lowered


@intrinsic
def fetch(context: Any, source: Any, index: Any) -> Any:
    """Bring the memory at source[index] near; it need not exist.

    Rows of a tensor lie too far apart for the processor to see which one comes next.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        element = context.get_value_type(source.dtype)
        place = builder.gep(arguments[0], [arguments[1]], source_etype=element)
        place = builder.bitcast(place, ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [place.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", (place.type,), kind)
        builder.call(function, [place, number(0), number(3), number(1)])
        return context.get_dummy_value()

    return types.void(source, types.int64), lowered


@intrinsic
def splat(context: Any, value: Any) -> Any:
    """The scalar `value` in every lane."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _broadcast(builder, arguments[0])

    return Lanes(value)(value), lowered


@intrinsic
def totals(context: Any, source: Any, index: Any) -> Any:
    """The sums of the WIDTH vectors from source[index] on, each over its lanes, as one vector.

    Halves are added to halves, for pairs of vectors at once, so the order is fixed.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place, vector, align = _vector_pointer(context, builder, signature, arguments)
        values = []
        for row in range(WIDTH):
            there = builder.gep(place, [ir.IntType(64)(row)], source_etype=vector)
            values.append(builder.load(there, align=align, typ=vector))
        part = WIDTH  # lanes that belong to one of the vectors
        while part > 1:
            picked = [lane for lane in range(2 * WIDTH) if lane % part < part // 2]
            masks = [
                ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [lane + half for lane in picked])
                for half in (0, part // 2)
            ]
            values = [
                builder.fadd(*(builder.shuffle_vector(left, right, mask) for mask in masks))
                for left, right in zip(values[::2], values[1::2], strict=True)
            ]
            part //= 2
        return values[0]

    return Lanes(source.dtype)(source, types.int64), lowered


@intrinsic
def magnitude(context: Any, value: Any) -> Any:
    """Absolute value."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return _call(builder, "fabs", *arguments)

    return value(value), lowered


@intrinsic
def where_above(context: Any, value: Any, bound: Any, above: Any, otherwise: Any) -> Any:
    """`above` in the lanes where value > bound (a number), else `otherwise`; so for NaN."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        number = context.cast(builder, arguments[1], signature.args[1], signature.args[0].dtype)
        test = builder.fcmp_ordered(">", arguments[0], _broadcast(builder, number))
        return builder.select(test, arguments[2], arguments[3])

    return value(value, bound, value, value), lowered


# Minimax polynomial of 2**f on |f| <= 1/2 in the relative error, which is 1.6e-7 in float32 (float32's
# spacing is 1.2e-7). The constant is exactly 1, so that the error vanishes where a state hardly
# decays and would otherwise add it up over thousands of steps.
_EXP2 = (
    1.0,
    0.6931470036506653,
    0.24022242426872253,
    0.05550733581185341,
    0.009671512991189957,
    0.001326472731307149,
)
_ROUND = 1.5 * 2.0**23 + 127.0  # added to |n| < 2**22 it leaves round(n) + 127 in the low bits


@intrinsic
def exp2(context: Any, value: Any) -> Any:
    """2**value: the C library's for float64, a polynomial with an error of about 1 ulp for float32.

    In float32 results below 2**-126.5 are 0, results from 2**127.5 on infinite.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (x,) = arguments
        vector = x.type
        if isinstance(vector.element, ir.DoubleType):
            return _call(builder, "exp2", x)
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        # The comparisons are false for NaN, so that NaN passes.
        low, high = _constant(vector, -127.0), _constant(vector, 128.0)
        x = builder.select(builder.fcmp_ordered(">", low, x), low, x)
        x = builder.select(builder.fcmp_ordered("<", high, x), high, x)
        shifted = builder.fadd(x, _constant(vector, _ROUND))
        fraction = builder.fsub(x, builder.fsub(shifted, _constant(vector, _ROUND)))
        power = _constant(vector, _EXP2[-1])
        for coefficient in _EXP2[-2::-1]:
            power = _call(builder, "fmuladd", power, fraction, _constant(vector, coefficient))
        bits = builder.bitcast(shifted, integers)
        scale = builder.shl(bits, ir.Constant(integers, [23] * WIDTH))
        return builder.fmul(power, builder.bitcast(scale, vector))

    return value(value), lowered


@intrinsic
def log1p(context: Any, value: Any) -> Any:
    """log(1 + value) for 0 <= value <= 1, with a relative error at the level of rounding.

    It is 2 artanh(s) with s = value / (2 + value) <= 1/3: a power series in s * s <= 1/9.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (u,) = arguments
        vector = u.type
        terms = 16 if isinstance(vector.element, ir.DoubleType) else 7
        s = builder.fdiv(u, builder.fadd(u, _constant(vector, 2.0)))
        square = builder.fmul(s, s)
        series = _constant(vector, 2.0 / (2 * terms + 1))
        for k in range(terms - 1, -1, -1):
            term = _constant(vector, 2.0 / (2 * k + 1))
            series = _call(builder, "fmuladd", series, square, term)
        return builder.fmul(s, series)

    return value(value), lowered
