"""Triton's interpreter, without the work that it repeats.

For every operation it makes the same types anew, in Python. What is computed stays the same.
"""

from __future__ import annotations

import functools
import types
from typing import Any

import numpy as np


@functools.cache
def shorten_interpreter() -> None:
    """Let the interpreter do once what it repeats; calls after the first do nothing."""
    _patch_language_once()
    _remember_types()
    _check_overflow_at_once()


def _patch_language_once() -> None:
    """Replace the language by interpreted functions once a launch for each module of kernels.

    The interpreter does so again at each call of a function from inside a kernel.
    """
    from triton.runtime import interpreter

    launch, patch = interpreter.GridExecutor.__call__, interpreter._patch_lang
    patched: set[str] = set()

    @functools.wraps(launch)
    def launch_anew(self: Any, *arguments: Any, **options: Any) -> Any:
        patched.clear()
        return launch(self, *arguments, **options)

    @functools.wraps(patch)
    def patch_once(function: Any) -> Any:
        if function.__module__ in patched:
            return types.SimpleNamespace(restore=lambda: None)
        patched.add(function.__module__)
        return patch(function)

    interpreter.GridExecutor.__call__, interpreter._patch_lang = launch_anew, patch_once


def _remember_types() -> None:
    """Make each type of a block once, with what its tensors share, and find numpy's type once."""
    import triton.language as tl
    from triton.runtime import interpreter

    of_block, of_tensor = tl.block_type.__init__, tl.tensor.__init__
    find_numpy = interpreter._get_np_dtype
    of_number = functools.cache(find_numpy)
    known: dict[Any, dict[str, Any]] = {}

    def make_block(self: Any, element_ty: Any, shape: Any) -> None:
        pointer = getattr(element_ty, "address_space", None), getattr(element_ty, "const", None)
        # With their types: the first of a kind goes through Triton's own checks.
        sizes = type(shape), *((type(size), getattr(size, "value", size)) for size in shape)
        key = element_ty.name, pointer, sizes
        if key not in known:
            of_block(self, element_ty, shape)
            known[key] = self.__dict__
        self.__dict__ = known[key]  # nothing changes a type

    def make_tensor(self: Any, handle: Any, type: Any) -> None:
        shared = type.__dict__.get("of_tensor")
        if shared is None:
            of_tensor(self, handle, type)
            names = ("shape", "numel", "type", "dtype")
            type.of_tensor = {name: self.__dict__[name] for name in names}
        else:
            self.__dict__.update(shared)
            self.handle = handle

    def numpy_type(of: Any) -> Any:
        if isinstance(of, tl.block_type):
            of = of.element_ty
        return find_numpy(of) if isinstance(of, tl.pointer_type) else of_number(of)

    tl.block_type.__init__, tl.tensor.__init__ = make_block, make_tensor
    interpreter._get_np_dtype = numpy_type


def _check_overflow_at_once() -> None:
    """Compare integers with their limits in numpy, and fail where they are beyond.

    The interpreter does so by a dozen operations of the language, and then drops the outcome.
    """
    from triton.language import semantic

    if not hasattr(semantic, "TritonSemantic"):  # before triton 3.4 there is no such class
        return
    operators = {"add": np.add, "sub": np.subtract, "mul": np.multiply}

    def check(self: Any, left: Any, right: Any, operation: Any) -> None:
        number = left.type.scalar
        if number.int_bitwidth >= 64 or not self.builder.options.sanitize_overflow:
            return
        wide = [side.handle.data.astype(np.int64) for side in (left, right)]
        result = operators[operation.__name__](*wide)
        lowest, highest = number.get_int_min_value(), number.get_int_max_value()
        assert lowest <= result.min() and result.max() <= highest, (
            f"int{number.int_bitwidth} overflow detected for operation {operation.__name__}"
        )

    semantic.TritonSemantic.binary_op_sanitize_overflow_impl = check
