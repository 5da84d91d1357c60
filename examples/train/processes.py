"""What the processes of a run tell each other, and which of them reports an error."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import distributed

T = TypeVar("T")


class ReportedError(Exception):
    """An error of a run that the first process reports; the others end without a word."""


def rank_and_world() -> tuple[int, int]:
    """Return the number of this process and how many there are; (0, 1) without torchrun.

    Before the processes form a group, what torchrun says.
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@contextlib.contextmanager
def same_error() -> Iterator[None]:
    """Inside the `with` block an error is the same on all processes: the first reports it.

    Raises:
        Exception: The error, on the first process.
        ReportedError: On the others.
    """
    try:
        yield
    except Exception as error:
        if rank_and_world()[0] > 0:
            raise ReportedError(str(error)) from error
        raise


def gather(value: T) -> list[T]:
    """Return the values of all processes, in their order."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values


def on_all(work: Callable[[], T]) -> T:
    """Do work on every process and wait for all: what fails on one fails on all.

    Raises:
        Exception: On the first process: its own error.
        RuntimeError: On the first process: that of another.
        ReportedError: On the others.
    """
    result, error = None, None
    try:
        result = work()
    except Exception as raised:
        error = raised
    errors = gather(None if error is None else f"{type(error).__name__}: {error}")
    failed = [number for number, text in enumerate(errors) if text is not None]
    if failed:
        with same_error():
            raise error or RuntimeError(f"process {failed[0]} failed: {errors[failed[0]]}")
    return result  # type: ignore[return-value]


def same_on_all(work: Callable[[], T]) -> T:
    """Read what all processes find in the folders of a run, and check that it is the same.

    Raises:
        ValueError: It is not; otherwise as `on_all`.
    """
    found = gather(on_all(work))
    others = [number for number, each in enumerate(found) if each != found[0]]
    if others:
        with same_error():
            raise ValueError(
                f"process {others[0]} does not find the files of process 0: --output and "
                "--cache-tokens must be on a disk that all processes share"
            )
    return found[0]
