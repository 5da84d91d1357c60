"""Numbers in half precision, int8 or float32: widened when loaded, and asked for early."""

from __future__ import annotations

import functools
import platform
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from muse_adapter.ops.numba_cpu.simd import WIDTH, Lanes


@functools.cache
def has_half_precision() -> bool:
    """Whether the machine code may convert half precision: on any x86 since 2013, unless told not.

    Elsewhere LLVM would call a function that is not there.
    """
    machine = platform.machine().lower()
    if machine not in ("x86_64", "amd64"):
        return machine in ("aarch64", "arm64")
    if config.CPU_FEATURES is not None:  # NUMBA_CPU_FEATURES, or empty by NUMBA_CPU_NAME=generic
        return "+f16c" in config.CPU_FEATURES.split(",")
    return bool(config.ENABLE_AVX and llvm.get_host_cpu_features().get("f16c"))


@intrinsic
def load_stored(context: Any, source: Any, index: Any, like: Any) -> Any:
    """Load WIDTH numbers from source[index] on, as numbers of the type of `like`.

    Numbers that `source` calls int16 are the bits of halves; others are what it calls them.
    """
    element, size = {
        types.int8: (ir.IntType(8), 1),
        types.int16: (ir.HalfType(), 2),
        types.float32: (ir.FloatType(), 4),
        types.float64: (ir.DoubleType(), 8),
    }[source.dtype]

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place, index, _ = arguments
        stored, single = ir.VectorType(element, WIDTH), ir.VectorType(ir.FloatType(), WIDTH)
        place = builder.gep(place, [index], source_etype=ir.IntType(8 * size))
        numbers = builder.load(builder.bitcast(place, stored.as_pointer()), align=size, typ=stored)
        wide = ir.VectorType(context.get_value_type(like), WIDTH)
        if size == 1:
            integers = ir.VectorType(ir.IntType(32), WIDTH)
            return builder.sitofp(builder.sext(numbers, integers), wide)
        if size == 2:  # processors convert halves to float32 alone
            numbers = builder.fpext(numbers, single)
        return numbers if numbers.type == wide else builder.fpext(numbers, wide)

    return Lanes(like)(source, types.int64, like), lowered


@intrinsic
def prefetch(context: Any, source: Any, index: Any) -> Any:
    """Ask for the cache line of source[index], which need not exist."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        number, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        element = context.get_value_type(source.dtype)
        place = builder.gep(arguments[0], [arguments[1]], source_etype=element)
        kind = ir.FunctionType(ir.VoidType(), [byte, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [byte], kind)
        # To be read, as data, into the second cache, which can wait for more lines than the first.
        builder.call(function, [builder.bitcast(place, byte), number(0), number(2), number(1)])
        return context.get_dummy_value()

    return types.void(source, types.int64), lowered
