"""Triton kernels of the package, compiled ahead of time: no GPU is needed, nor used."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import muse_adapter.ops.triton_gpu as package
from muse_adapter.ops.triton_gpu import function

# Sizes of the paper, and the case that trains: variable B and C, time in segments.
CONSTANTS: dict[str, Any] = {
    "E": 512, "S": 16, "STATES": 16, "TAPS": 4, "TYPE": tl.float32, "SOFTPLUS": True,
    "MASKED": False, "B_CONSTANT": False, "C_CONSTANT": False, "ENTERED": True, "INITIAL": True,
    "SAVED": True, "GIVEN": False, "BOTH": True, "PLACED": False,
}  # fmt: skip
# Constants whose module-level name differs from the parameter's.
RENAMED = {("convolve_backward", "WIDTH"): "CHANNELS"}
# Pointers to the inputs' type; in the convolutions' kernels further ones, all others are the state's.
HALF = set(
    "x x0 x1 delta0 delta1 B0 B1 C0 C1 dx0 dx1 ddelta0 ddelta1 z out dout dz dx total".split()
)
CONVOLVED = {"y0", "y1", "dy0", "dy1"}
INTEGERS = {"lengths": "*i32", "positions": "*i64"}


def kernels() -> Iterator[tuple[ModuleType, str]]:
    """Find the kernels: unlike functions that they call, they name arguments not to specialise.

    Raises:
        RuntimeError: Triton was told to interpret kernels, and cannot compile them.
    """
    if triton.knobs.runtime.interpret:
        raise RuntimeError("unset TRITON_INTERPRET to compile kernels")
    for info in pkgutil.iter_modules(package.__path__, package.__name__ + "."):
        module = importlib.import_module(info.name)
        for name, value in vars(module).items():
            if not isinstance(value, triton.JITFunction) or not value.do_not_specialize:
                continue
            if value.fn.__module__ == module.__name__:
                yield module, name


def constants(module: ModuleType, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a kernel's constants: those given, else as the package launches it.

    Raises:
        ValueError: A constant is unknown.
    """
    values = {}
    for parameter in getattr(module, name).params:
        key = parameter.name
        if not parameter.is_constexpr:
            continue
        found = RENAMED.get((name, key), key)
        for source in (given, CONSTANTS, vars(module), vars(function)):
            if (wanted := key if source is given else found) in source:
                values[key] = source[wanted]
                break
        else:
            raise ValueError(f"constant {key} of kernel {name} is unknown: give {key}=VALUE")
    return values


def signature(
    module: ModuleType, name: str, types: Mapping[str, str]
) -> tuple[dict[str, str], dict[tuple[int], list[list[Any]]]]:
    """Types of a kernel's parameters, and which are multiples of 16 (pointers, and strides)."""
    kernel = getattr(module, name)
    half = HALF | CONVOLVED if "convol" in name else HALF
    found: dict[str, str] = {}
    aligned: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        key = parameter.name
        if parameter.is_constexpr:
            found[key] = "constexpr"
            continue
        if key in types:
            found[key] = types[key]
        elif parameter.do_not_specialize or key.endswith(("_time", "_channels")):
            found[key] = "i32"
        else:
            found[key] = INTEGERS.get(key, "*bf16" if key in half else "*fp32")
        if not parameter.do_not_specialize:
            aligned[(index,)] = [["tt.divisibility", 16]]
    return found, aligned


def compile_kernel(
    module: ModuleType,
    name: str,
    target: Sequence[Any],
    given: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    **options: Any,
) -> Any:
    """Compile a kernel for (platform, architecture, threads of a warp).

    Args:
        module, name: Of the kernel.
        target: As ("cuda", 90, 32).
        given: Constants that differ from the package's.
        types: Of parameters, as {"dy0": "*bf16"}.
        options: Of the compiler, as num_warps.
    """
    found, aligned = signature(module, name, types or {})
    values = constants(module, name, given or {})
    source = ASTSource(fn=getattr(module, name), signature=found, constexprs=values, attrs=aligned)
    options = {**getattr(module, "OPTIONS", function.OPTIONS), **options}
    return triton.compile(source, target=GPUTarget(*target), options=options)
