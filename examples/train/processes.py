"""What the processes of a run tell each other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) without torchrun."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def on_all(work: Callable[[], T]) -> T:
    """Do work on every process and wait for all: what fails on one fails on all.

    Raises:
        Exception: The own error.
        RuntimeError: That of another process.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    errors = gather(None if error is None else f"{type(error).__name__}: {error}")
    if error is not None:
        raise error
    for number, text in enumerate(errors):
        if text is not None:
            raise RuntimeError(f"process {number} failed: {text}")
    return result  # type: ignore[return-value]
