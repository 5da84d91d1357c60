"""Several processes that add to one index take turns of writing."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

from muse_adapter.search.store import Store, Writer

PATIENCE_S = 600.0  # compacting a large table takes minutes, a batch milliseconds


@contextlib.contextmanager
def wait_for_turn(store: Store) -> Iterator[Writer]:
    """Write when no other process does.

    Raises:
        BlockingIOError: Another one has been writing for ten minutes; the message names it.
    """
    deadline = time.monotonic() + PATIENCE_S
    with contextlib.ExitStack() as stack:
        while True:
            try:
                writer = stack.enter_context(store.write())
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(random.uniform(0.005, 0.05))  # not all at the same moment again
        yield writer
