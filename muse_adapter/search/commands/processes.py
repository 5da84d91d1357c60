"""The processes that torchrun has started: they share the work, and the first one reports."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch import distributed

# The first to be done waits for the last. torchrun ends all of them when one is killed.
_LONGEST = timedelta(days=365)


class Processes:
    """This process among those that share the work; without torchrun it is the only one.

    Attributes:
        rank: Number of this process.
        count: Number of processes.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    def broadcast(self, value: Any) -> Any:
        """Return the value of the first process; that of the others does not count."""
        if self.count == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, in each of them."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values


@contextlib.contextmanager
def started_processes() -> Iterator[Processes]:
    """Connect the processes that torchrun has started, by its environment variables."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Processes()
        return
    distributed.init_process_group("gloo", timeout=_LONGEST)
    try:
        yield Processes(distributed.get_rank(), count)
    finally:
        distributed.destroy_process_group()
