"""The elementary functions of the scan, for the lanes of a register."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from muse_adapter.ops.numba_cpu.simd import (
    LOG2E,
    WIDTH,
    call_intrinsic,
    constant,
    inline,
    magnitude,
    where_above,
)

# Minimax polynomial of 2**f on |f| <= 1/2 in the relative error, which is 1.6e-7 in float32 (whose
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
            return call_intrinsic(builder, "exp2", x)
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        # The comparisons are false for NaN, so that NaN passes.
        low, high = constant(vector, -127.0), constant(vector, 128.0)
        x = builder.select(builder.fcmp_ordered(">", low, x), low, x)
        x = builder.select(builder.fcmp_ordered("<", high, x), high, x)
        shifted = builder.fadd(x, constant(vector, _ROUND))
        fraction = builder.fsub(x, builder.fsub(shifted, constant(vector, _ROUND)))
        power = constant(vector, _EXP2[-1])
        for coefficient in _EXP2[-2::-1]:
            power = call_intrinsic(
                builder, "fmuladd", power, fraction, constant(vector, coefficient)
            )
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
        s = builder.fdiv(u, builder.fadd(u, constant(vector, 2.0)))
        square = builder.fmul(s, s)
        series = constant(vector, 2.0 / (2 * terms + 1))
        for k in range(terms - 1, -1, -1):
            term = constant(vector, 2.0 / (2 * k + 1))
            series = call_intrinsic(builder, "fmuladd", series, square, term)
        return builder.fmul(s, series)

    return value(value), lowered


@inline
def softplus_and_slope(v: Any) -> Any:
    """log(1 + exp(v)) and its derivative; above 20 they are v and 1, as in torch."""
    u = exp2(magnitude(v) * -LOG2E)
    one = u * 0.0 + 1.0
    value = where_above(v, 0.0, v, u * 0.0) + log1p(u)
    slope = where_above(v, 0.0, one, u) / (u + 1.0)
    return where_above(v, 20.0, v, value), where_above(v, 20.0, one, slope)
