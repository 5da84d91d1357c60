"""One writer at a time, and the others are told who it is."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

LOCK_NAME = "writer.lock"


@contextlib.contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a folder inside the `with` block.

    The system's lock on a file: it ends with the process, however that ends, so a killed writer
    leaves nothing behind.

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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{str(folder)!r} is being written by {_holder(file)}; one writer at a time, and "
                "any number of readers"
            ) from error
        holder = {"process": os.getpid(), "host": socket.gethostname()}
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(holder).encode(), 0)
        yield
        os.ftruncate(file, 0)
    finally:
        os.close(file)


def _holder(file: int) -> str:
    try:
        holder = json.loads(os.pread(file, 4096, 0))
        return f"process {holder['process']} on host {holder['host']}"
    except (ValueError, TypeError, KeyError):  # it has the lock, but has not written its name yet
        return "another process"
