"""A function in a process of its own: its peak of memory is its own, and so is a crash."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from pathlib import Path
from typing import Any

# Loaded once, by the server that isolated processes are forked from.
PRELOAD = ["benchmarks.heads.preload"]


class DiedError(RuntimeError):
    """The process ended without an answer."""


def isolated(function: Callable[..., Any], *arguments: Any, preloaded: bool = False) -> Any:
    """Call a function of some module in a new process.

    Args:
        function: Anything that can be pickled, as must be its result.
        *arguments: Its arguments, likewise.
        preloaded: Fork from a server that has loaded what all heads use, rather than start an
            interpreter. Faster, but libraries that the function does not use are resident too.

    Returns:
        What the function returns.

    Raises:
        MemoryError: It asked for more than the machine has free.
        DiedError: The process ended without an answer, killed for example.
        RuntimeError: Whatever else the function raised, as text.
    """
    context: ForkServerContext | SpawnContext
    if preloaded:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOAD)
    else:
        context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, arguments))
    process.start()
    theirs.close()
    try:
        kind, answer = ours.recv()
    except EOFError:
        process.join()
        raise DiedError(f"the process ended with code {process.exitcode}") from None
    except BaseException:  # interrupted: nobody waits for it any more
        process.terminate()
        raise
    process.join()
    if kind == "memory":
        raise MemoryError(answer)
    if kind == "error":
        raise RuntimeError(answer)
    return answer


def _answer(connection: Connection, function: Callable[..., Any], arguments: Any) -> None:
    try:
        _limit_memory()
        connection.send(("result", function(*arguments)))
    except KeyboardInterrupt:
        pass  # of the whole group: the parent says so
    except Exception as error:
        memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        lines = str(error).splitlines() or [type(error).__name__]
        text = lines[0] if memory else f"{type(error).__name__}: {error}"
        connection.send(("memory" if memory else "error", text))


def _limit_memory() -> None:
    """Make allocations beyond what is free fail, rather than have the machine swap or kill."""
    info = Path("/proc/meminfo")
    if not info.exists():
        return
    import resource

    free = _read_kib(info, "MemAvailable")
    data = _read_kib(Path("/proc/self/status"), "VmData")
    limit = data + free * 9 // 10
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def _read_kib(file: Path, name: str) -> int:
    """Read a line of /proc that is in KiB; returns bytes."""
    for line in file.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{file} has no line {name}")
