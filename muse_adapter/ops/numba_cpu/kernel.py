"""Compile kernels, pass them their arguments and run them on several threads.

A kernel is a C function of one address. There stand, as 64-bit integers, the numbers of the next
job and of the next thread, how many threads may work, then the arguments, one after the other:
sizes, strides and addresses of tensors. Threads of any kind run it without the interpreter and its
lock; they take jobs from the common counter until none is left.
"""

from __future__ import annotations

import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from muse_adapter.ops.numba_cpu.kernel_cache import compile_kernel
from muse_adapter.ops.numba_cpu.parallel import run_parallel
from muse_adapter.ops.operator import NEGLIGIBLE

_WORD = ir.IntType(64)
_NUMBERS = {torch.float32: types.float32, torch.float64: types.float64}
_HEAD = 3  # numbers in front of the arguments


class Kernel:
    """A kernel in float32 and float64, compiled on first use and kept on disk.

    Args:
        function: Takes the address as a pointer to its type, and reads the rest by `unpacker`.
    """

    def __init__(self, function: Callable[[Any], None]) -> None:
        # Numba tells a stale kernel by the time of the file that it stands in; the name of the
        # kernel carries what comes from elsewhere.
        files = sorted(Path(__file__).parent.glob("*.py"))
        source = b"".join(file.read_bytes() for file in files) + repr(NEGLIGIBLE).encode()
        function.__qualname__ += f"_{zlib.crc32(source):08x}"
        self.function = function
        self._compiled: dict[torch.dtype, Any] = {}

    def run(self, dtype: torch.dtype, threads: int, *arguments: Any) -> None:
        """Run it on several threads, and wait until all have returned.

        Args:
            dtype: float32 or float64.
            threads: How many, at least 1.
            *arguments: Integers and tuples of them, as `unpacker` has been told.
        """
        words = [0, 0, threads]
        for argument in arguments:
            words += argument if isinstance(argument, tuple) else (argument,)
        numbers = array("q", words)
        run_parallel(self._address(dtype), numbers.buffer_info()[0], threads)

    def _address(self, dtype: torch.dtype) -> int:
        if dtype not in self._compiled:
            self._compiled[dtype] = self._compile(dtype)
        address: int = self._compiled[dtype].address
        return address

    def _compile(self, dtype: torch.dtype) -> Any:
        return compile_kernel(self.function, types.void(types.CPointer(_NUMBERS[dtype])))


def unpacker(*counts: int) -> Any:
    """Make a function for kernels, from the address to the arguments that stand there.

    Args:
        *counts: How many integers each argument has: a tuple, or for 1 the integer itself.

    Returns:
        (1 in the kernel's type, address of the two counters, threads that may work, *arguments).
    """
    kinds = [types.int64 if count == 1 else types.UniTuple(types.int64, count) for count in counts]

    @intrinsic
    def unpack(context: Any, memory: Any) -> Any:
        def lowered(
            context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any
        ) -> ir.Value:
            words = builder.bitcast(arguments[0], _WORD.as_pointer())

            def word(at: int) -> ir.Value:
                return builder.load(builder.gep(words, [_WORD(at)], source_etype=_WORD), typ=_WORD)

            unit = ir.Constant(context.get_value_type(memory.dtype), 1.0)
            values, at = [unit, builder.ptrtoint(arguments[0], _WORD), word(_HEAD - 1)], _HEAD
            for count, kind in zip(counts, kinds, strict=True):
                read = [word(at + i) for i in range(count)]
                values.append(read[0] if count == 1 else context.make_tuple(builder, kind, read))
                at += count
            return context.make_tuple(builder, signature.return_type, values)

        return types.Tuple((memory.dtype, types.int64, types.int64, *kinds))(memory), lowered

    return unpack


@intrinsic
def next_number(context: Any, counter: Any) -> Any:
    """Return the number at the address `counter` and raise it by 1, atomically."""

    def lowered(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        place = builder.inttoptr(arguments[0], _WORD.as_pointer())
        return builder.atomic_rmw("add", place, _WORD(1), "monotonic")

    return types.int64(types.int64), lowered
