"""Memory between two pages that cannot be touched, for every tensor that an operator works with.

A tensor ends exactly where the page behind it begins, or begins exactly where the page in front of
it ends: the first byte that is read or written outside ends the process with a signal. Memory that
nothing was written to, and what lies between the elements of a tensor, is NaN.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

PAGE = mmap.PAGESIZE
SIDES = "behind", "in front"

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int),
    *(ctypes.c_int, ctypes.c_long),
]
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


def guarded_bytes(count: int, side: str) -> Tensor:
    """Allocate bytes, all 255, with a guard page behind them or in front of them."""
    pages = -(-count // PAGE) * PAGE
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    base = _libc.mmap(None, pages + 2 * PAGE, 0, private, -1, 0)
    assert base != ctypes.c_void_p(-1).value, "no more memory can be mapped"
    assert _libc.mprotect(base + PAGE, pages, mmap.PROT_READ | mmap.PROT_WRITE) == 0
    start = base + PAGE + (pages - count if side == "behind" else 0)
    ctypes.memset(start, 255, count)
    memory = (ctypes.c_ubyte * count).from_address(start)
    weakref.finalize(memory, _libc.munmap, base, pages + 2 * PAGE)
    return torch.frombuffer(memory, dtype=torch.uint8)  # holds `memory`


def guarded(tensor: Tensor, side: str, *, filled: bool = True) -> Tensor:
    """Copy a tensor, with its strides, into guarded memory that holds it and nothing else.

    Args:
        tensor: On the CPU.
        side: Where the guard page is.
        filled: Whether its values are copied.
    """
    if tensor.numel() == 0 or tensor.device.type != "cpu":
        return tensor
    axes = list(zip(tensor.shape, tensor.stride(), strict=True))
    span = sum((size - 1) * stride for size, stride in axes) + 1
    memory = guarded_bytes(span * tensor.element_size(), side).view(tensor.dtype)
    if filled:  # by their places: strides may be 0 or overlap
        places = torch.zeros((), dtype=torch.int64)
        for size, stride in axes:
            places = places.unsqueeze(-1) + torch.arange(size) * stride
        memory[places.reshape(-1)] = tensor.resolve_neg().reshape(-1)
    return memory.as_strided(tensor.shape, tensor.stride())


class _GuardedResults(TorchDispatchMode):
    """Move every tensor that an operation of torch allocates into guarded memory."""

    def __init__(self, side: str) -> None:
        super().__init__()
        self.side = side

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_memory(t) for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)}
        filled = "empty" not in func.name()

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor) or _memory(value) in given:
                return value
            return guarded(value, self.side, filled=filled)

        return tree_map(move, result)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.device.type != "meta" else -1


def guard_operators(side: Callable[[], str]) -> None:
    """Have all operators of the package that are registered from now on run in guarded memory.

    Args:
        side: Says at every call where the guard pages are.

    An operator that changes its arguments, or memory between their elements, raises an
    `AssertionError`.
    """
    register = torch.library.Library.impl

    def register_guarded(self: Any, name: Any, function: Any, key: str = "", **options: Any) -> Any:
        if self.ns == "muse_adapter" and key != "Autograd":
            function = _in_guarded_memory(function, side)
        return register(self, name, function, key, **options)

    torch.library.Library.impl = register_guarded


def _in_guarded_memory(function: Callable[..., Any], side: Callable[[], str]) -> Any:
    def run(*arguments: Any) -> Any:
        where = side()
        moved = tree_map(lambda t: guarded(t, where) if isinstance(t, Tensor) else t, arguments)
        before = _bytes_of(moved)
        with _GuardedResults(where):
            result = function(*moved)
        assert before == _bytes_of(moved), "an argument was changed"
        return result

    return run


def _bytes_of(arguments: Any) -> list[bytes]:
    tensors = [t for t in tree_flatten(arguments)[0] if isinstance(t, Tensor)]
    return [
        bytes(torch.tensor([], dtype=torch.uint8).set_(t.untyped_storage()).numpy())
        for t in tensors
        if t.device.type == "cpu"
    ]
