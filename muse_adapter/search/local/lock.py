"""One writer at a time, and the others are told who it is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from muse_adapter.files import is_running

LOCK_NAME = "writer.lock"
# Seconds in which the workers of a killed process end; those of torch look every 5 seconds.
ORPHANS_S = 15.0


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder inside the `with` block.

    The system's lock on a file: it ends with the process, however that ends, so a killed writer
    leaves nothing behind. Processes that a killed writer had started to read videos have the lock
    too, until they notice: that is waited for.

    Raises:
        BlockingIOError: Another one writes; the message names its process and host.
        OSError: The file system or the operating system has no such locks.
    """
    try:
        import fcntl
    except ImportError as error:
        raise OSError(
            "writing an index needs the file locks of a POSIX system (Linux, macOS)"
        ) from error
    path = folder / LOCK_NAME
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + ORPHANS_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if not _is_orphaned(file) or time.monotonic() > deadline:
                    raise BlockingIOError(
                        f"{str(folder)!r} is being written by {_holder(file)}; one writer at a "
                        "time, and any number of readers"
                    ) from error
                time.sleep(0.05)
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        try:
            yield
        finally:
            os.ftruncate(file, 0)
            # Closing is not enough: processes that were forked meanwhile have the file open too.
            fcntl.flock(file, fcntl.LOCK_UN)
    finally:
        os.close(file)


def _holder(file: int) -> str:
    holder = _read_holder(file)
    return "another process" if holder is None else "process {} on host {}".format(*holder)


def _is_orphaned(file: int) -> bool:
    """Return whether the process that took the lock is gone, and its children have it."""
    holder = _read_holder(file)
    return holder is not None and holder[1] == socket.gethostname() and not is_running(holder[0])


def _read_holder(file: int) -> tuple[int, str] | None:
    """Read the process and host of the writer; None: it has not written them yet."""
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return int(holder["process"]), str(holder["host"])
    except (ValueError, TypeError, KeyError):
        return None
