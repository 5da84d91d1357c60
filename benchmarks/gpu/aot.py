"""Triton kernels of the package, compiled ahead of time: no GPU is needed, nor used."""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

import muse_adapter.ops.triton_gpu as package
from benchmarks.gpu import sass
from muse_adapter.ops.triton_gpu import function

# Sizes of the paper, and all that a training step does. Other constants are the package's.
CONSTANTS: dict[str, Any] = {
    "E": 512, "S": 16, "STATES": 16, "TAPS": 4, "TYPE": tl.float32, "SOFTPLUS": True,
    "MASKED": False, "B_CONSTANT": False, "C_CONSTANT": False, "ENTERED": True, "INITIAL": True,
    "SAVED": True, "GIVEN": False, "BOTH": True, "PLACED": False,
}  # fmt: skip
# Constants that the package has under another name; or it ends in that of the kernel's file.
NAMES = {
    ("convolve_backward", "WIDTH"): "CHANNELS",
    ("gradient_summaries", "STEPS"): "STEPS_FORWARD",
    ("gradients", "WIDE"): "STEPS_FORWARD",
}

# Parameters of the type of the inputs; all others are of the type of the state.
INPUTS = {
    *("x", "x0", "x1", "delta0", "delta1", "z", "total", "out"),
    *("dx", "dx0", "dx1", "ddelta0", "ddelta1", "dz", "dout"),
}
CONVOLVED = {"y0", "y1", "dy0", "dy1"}  # likewise, but of the state's type in a scan
INTEGERS = {"lengths": "*i32", "positions": "*i64"}
STRIDES = ("_time", "_channels")


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
            is_kernel = isinstance(value, triton.JITFunction) and value.do_not_specialize
            if is_kernel and value.fn.__module__ == module.__name__:
                yield module, name


def constants(module: ModuleType, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the constants of a kernel: those given, else as in a training step.

    Raises:
        ValueError: The value of a constant is unknown.
    """
    known = {**vars(function), **vars(module), **CONSTANTS}
    values = {}
    for parameter in getattr(module, name).params:
        if not parameter.is_constexpr:
            continue
        key = parameter.name
        by_file = f"{key}_{module.__name__.rpartition('.')[2].upper()}"
        if key in given:
            values[key] = given[key]
        elif found := [n for n in (NAMES.get((name, key), key), by_file) if n in known]:
            values[key] = known[found[0]]
        else:
            raise ValueError(f"kernel {name} has a constant of unknown value: give {key}=...")
    return values


def compile_kernel(
    module: ModuleType,
    name: str,
    target: tuple[str, int | str, int],
    *,
    given: Mapping[str, Any] | None = None,
    types: Mapping[str, str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """Compile a kernel for bfloat16 inputs and a float32 state.

    Args:
        module: Where the kernel is.
        name: Of the kernel.
        target: Platform, architecture and threads of a warp, as ("cuda", 90, 32).
        given: Constants that differ from those of a training step.
        types: Types of parameters that differ, as {"dy0": "*bf16"}.
        options: Of the compiler, where they differ from the package's, as {"num_warps": 2}.

    Returns:
        Triton's compiled kernel.
    """
    kernel = getattr(module, name)
    signature: dict[str, str] = {}
    aligned: dict[tuple[int], list[list[Any]]] = {}
    for index, parameter in enumerate(kernel.params):
        signature[parameter.name] = _type(name, parameter, types or {})
        if not parameter.is_constexpr and not parameter.do_not_specialize:
            aligned[(index,)] = [["tt.divisibility", 16]]  # as tensors and their strides are
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs=constants(module, name, given or {}),
        attrs=aligned,
    )
    chosen = {**getattr(module, "OPTIONS", function.OPTIONS), **(options or {})}
    return triton.compile(source, target=GPUTarget(*target), options=chosen)


def _type(kernel: str, parameter: Any, types: Mapping[str, str]) -> str:
    """Name the type of a parameter as Triton does."""
    key = parameter.name
    if parameter.is_constexpr:
        return "constexpr"
    if key in types:
        return types[key]
    if parameter.do_not_specialize or key.endswith(STRIDES):
        return "i32"
    convolution = kernel.startswith("convolve") and key in CONVOLVED
    return INTEGERS.get(key, "*bf16" if convolution or key in INPUTS else "*fp32")


def usage(compiled: Any) -> dict[str, int]:
    """Read registers of a thread (REG), its bytes on the stack (STACK) and spilled (LOCAL).

    Returns:
        Also `atomics`, whether a sum depends on the order in which programs run.
    """
    if "amdgcn" not in compiled.asm:
        found = sass.resources(compiled.asm["cubin"])
        return {**found, "atomics": "atom" in compiled.asm["ptx"]}
    text = compiled.asm["amdgcn"]
    names = {"REG": "NumVgprs", "STACK": "ScratchSize", "LOCAL": "vgpr_spill_count"}
    numbers = {key: re.search(name + r": *(\d+)", text) for key, name in names.items()}
    return {k: int(n[1]) for k, n in numbers.items() if n} | {"atomics": "atomic" in text}
