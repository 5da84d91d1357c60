"""Numbers too small for the type's normal range, counted as zero while a kernel runs.

What decays step by step ends among them: a state that nothing feeds any more, and in the last layer
the gradient that stems from a few class tokens only. Arithmetic on them costs a processor a hundred
times as much, and what they add (below 2**-126 in float32) is lost in any sum.

Gradients that products would bring there are zero too. On 2 cores of an Intel Xeon (torch 2.13.0,
2026-11-21) that took a training step of the head over 4 frames from 775 to 412 ms. An AMD EPYC
multiplies denormal numbers as fast as others: there it makes no difference (`python -m
benchmarks.ablation`, row "without flushing", 2026-11-28).
"""

from __future__ import annotations

import platform
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from torch import Tensor

from muse_adapter.ops.numba_cpu.simd import call_intrinsic, constant
from muse_adapter.ops.operator import NEGLIGIBLE

_WORD = ir.IntType(64)
# The bits of the control register by which results, and on x86 inputs too, are flushed to zero.
_X86_FLUSH = 1 << 15 | 1 << 6
_ARM_FLUSH = 1 << 24


@intrinsic
def flush_denormals(context: Any) -> Any:
    """Flush denormal numbers in this thread and return the mode before, for `restore_mode`."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        mode = _read(builder)
        _write(builder, builder.or_(mode, _WORD(FLUSH)))
        return mode

    return types.int64(), lowered


@intrinsic
def restore_mode(context: Any, mode: Any) -> Any:
    """Restore the mode that `flush_denormals` returned."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        _write(builder, arguments[0])
        return context.get_dummy_value()

    return types.void(types.int64), lowered


@intrinsic
def flush_small(context: Any, value: Any) -> Any:
    """Return the vector with 0 for what is negligible as a gradient; NaN stays."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        (x,) = arguments
        double = isinstance(x.type.element, ir.DoubleType)
        bound = constant(x.type, NEGLIGIBLE[torch.float64 if double else torch.float32])
        size = call_intrinsic(builder, "fabs", x)
        return builder.select(builder.fcmp_ordered("<", size, bound), constant(x.type, 0.0), x)

    return value(value), lowered


def flushed(tensor: Tensor) -> Tensor:
    """Flush a tensor in place. By numpy: for so little, torch's threads are not woken."""
    numbers = tensor.numpy()
    numbers[abs(numbers) < NEGLIGIBLE[tensor.dtype]] = 0
    return tensor


def _read_x86(builder: ir.IRBuilder) -> ir.Value:
    place = builder.alloca(ir.IntType(32))
    _on_mxcsr(builder, "stmxcsr", place)
    return builder.zext(builder.load(place), _WORD)


def _write_x86(builder: ir.IRBuilder, mode: ir.Value) -> None:
    place = builder.alloca(ir.IntType(32))
    builder.store(builder.trunc(mode, ir.IntType(32)), place)
    _on_mxcsr(builder, "ldmxcsr", place)


def _on_mxcsr(builder: ir.IRBuilder, instruction: str, place: ir.Value) -> None:
    address = ir.IntType(8).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [address])
    function = builder.module.declare_intrinsic(f"llvm.x86.sse.{instruction}", (), kind)
    builder.call(function, [builder.bitcast(place, address)])


def _read_arm(builder: ir.IRBuilder) -> ir.Value:
    kind = ir.FunctionType(_WORD, [])
    return builder.call(builder.module.declare_intrinsic("llvm.aarch64.get.fpcr", (), kind), [])


def _write_arm(builder: ir.IRBuilder, mode: ir.Value) -> None:
    kind = ir.FunctionType(ir.VoidType(), [_WORD])
    function = builder.module.declare_intrinsic("llvm.aarch64.set.fpcr", (), kind)
    builder.call(function, [mode])


FLUSH, _read, _write = {
    "x86_64": (_X86_FLUSH, _read_x86, _write_x86),
    "amd64": (_X86_FLUSH, _read_x86, _write_x86),
    "aarch64": (_ARM_FLUSH, _read_arm, _write_arm),
    "arm64": (_ARM_FLUSH, _read_arm, _write_arm),
}.get(
    platform.machine().lower(),
    (0, lambda builder: _WORD(0), lambda builder, mode: None),  # elsewhere they stay as they are
)
