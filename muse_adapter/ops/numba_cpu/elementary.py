"""The elementary functions of the scan, for the lanes of a register."""

from __future__ import annotations

from collections.abc import Sequence
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

# Minimax polynomial of log(1 + u) / u on 0 <= u <= 1 in the relative error, which is 1.8e-7 in
# float32. The first constant is exactly 1, for the same reason.
_LOG1P = (
    1.0,
    -0.49999647964108623,
    0.333213226331561,
    -0.24857163793307627,
    0.191536554406625,
    -0.13753803415496602,
    0.07920454829561734,
    -0.030065800129780062,
    0.005364826289473413,
)


def _polynomial(builder: ir.IRBuilder, coefficients: Sequence[float], x: ir.Value) -> ir.Value:
    value = constant(x.type, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        value = call_intrinsic(builder, "fmuladd", value, x, constant(x.type, coefficient))
    return value


@intrinsic
def exp2(context: Any, value: Any) -> Any:
    """Return 2**value, in float32 with an error of about 1 ulp, in float64 that of the C library.

    In float32 results below 2**-126.5 are 0, results from 2**127.5 on infinite.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (x,) = arguments
        vector = x.type
        if isinstance(vector.element, ir.DoubleType):
            return call_intrinsic(builder, "exp2", x)
        # The comparisons are false for NaN, so that NaN passes.
        low, high = constant(vector, -127.0), constant(vector, 128.0)
        x = builder.select(builder.fcmp_ordered(">", low, x), low, x)
        x = builder.select(builder.fcmp_ordered("<", high, x), high, x)
        shifted = builder.fadd(x, constant(vector, _ROUND))
        fraction = builder.fsub(x, builder.fsub(shifted, constant(vector, _ROUND)))
        power = _polynomial(builder, _EXP2, fraction)
        integers = ir.VectorType(ir.IntType(32), WIDTH)
        bits = builder.bitcast(shifted, integers)
        scale = builder.shl(bits, ir.Constant(integers, [23] * WIDTH))
        return builder.fmul(power, builder.bitcast(scale, vector))

    return value(value), lowered


@intrinsic
def log1p(context: Any, value: Any) -> Any:
    """Return log(1 + value) for 0 <= value <= 1, with a relative error at the level of rounding.

    A polynomial in float32. In float64 2 artanh(s) with s = value / (2 + value) <= 1/3: a power
    series in s * s <= 1/9.
    """

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (u,) = arguments
        vector = u.type
        if isinstance(vector.element, ir.FloatType):
            return builder.fmul(u, _polynomial(builder, _LOG1P, u))
        s = builder.fdiv(u, builder.fadd(u, constant(vector, 2.0)))
        series = [2.0 / (2 * k + 1) for k in range(17)]
        return builder.fmul(s, _polynomial(builder, series, builder.fmul(s, s)))

    return value(value), lowered


@inline
def softplus_and_slope(v: Any) -> Any:
    """Return log(1 + exp(v)) and its derivative; above 20 they are v and 1, as in torch."""
    u = exp2(magnitude(v) * -LOG2E)
    one = u * 0.0 + 1.0
    value = where_above(v, 0.0, v, u * 0.0) + log1p(u)
    slope = where_above(v, 0.0, one, u) / (u + 1.0)
    return where_above(v, 20.0, v, value), where_above(v, 20.0, one, slope)
