"""What a training step costs beside a busy process: whose threads lose, and which setting helps.

    python -m benchmarks.shared_machine                  # both machines, five minutes
    python -m benchmarks.shared_machine --machine busy --json FILE

OpenMP reads its settings as it is loaded, so each setting has a process of its own. The processes
work in turn, one step at a time, and sleep in between. Rows of the machine that is not measured
again stay in the JSON file.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.machine import machine, where
from benchmarks.measure import timed
from muse_adapter.ops import FreeThreads

TOKENS = 3060
THREADS = 2
SETTINGS: dict[str, dict[str, str]] = {
    "1 thread": {"OMP_NUM_THREADS": "1"},
    f"{THREADS} threads": {},
    f"{THREADS} threads, `GOMP_SPINCOUNT=0`": {"GOMP_SPINCOUNT": "0"},
}
LOOK_S = 1.0
DIVIDED = f"{THREADS} threads"  # the setting whose threads are also taken away one by one
LOADS = "quiet", "busy"
# What a process is asked for: a step of the head, torch's time for its products, and a step of the
# head with fewer threads for the kernels or for torch's operators, or with the threads that were
# free in the second before.
STEPS = "head", "floor", "head, kernels on 1", "head, torch on 1", "head, `FreeThreads`"

Row = dict[str, Any]


@contextlib.contextmanager
def torch_on_one_thread() -> Iterator[None]:
    """Leave torch's operators one thread, and the kernels as many as before."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with patch.object(torch, "get_num_threads", lambda: threads):
            yield
    finally:
        torch.set_num_threads(threads)


@contextlib.contextmanager
def free_threads(step: Callable[[], Any]) -> Iterator[None]:
    """Run steps for a second, then leave torch the threads that were free during them."""
    threads = torch.get_num_threads()
    free = FreeThreads()
    end = time.perf_counter() + LOOK_S
    while time.perf_counter() < end:
        step()
    free.adjust()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmark and print its rows."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--machine", choices=LOADS, nargs="+", default=[*LOADS])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="add the rows to this file")
    options = parser.parse_args(arguments)
    # Not above: it needs numba, which the documents' tables are written without.
    from benchmarks.ablation import busy_process, keep

    beside: dict[str, Callable[[], AbstractContextManager[None]]] = {
        "quiet": contextlib.nullcontext,
        "busy": busy_process,
    }
    print(", ".join(f"{key} {value}" for key, value in machine().items()))
    workers = {setting: Worker(environment) for setting, environment in SETTINGS.items()}
    try:
        for worker in workers.values():
            worker.wait_until_ready()
        for load in options.machine:
            with beside[load]():
                rows = measure(workers, load, options.repeats)
            for row in rows:
                ratio = f", {row['ratio']:.2f} of its floor" if "ratio" in row else ""
                print(f"{load:<6} {row['what']:<34} {row['head_s']:.2f} s{ratio}")
            if options.json:
                keep(options.json, rows)
    finally:
        for worker in workers.values():
            worker.stop()


class Worker:
    """A process with a head of its own, which computes a step when it is asked to.

    Args:
        environment: Variables that it has beyond those of this process.
    """

    def __init__(self, environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        with patch.dict(os.environ, {"OMP_NUM_THREADS": str(THREADS)} | environment):
            self._process.start()
        theirs.close()

    def wait_until_ready(self) -> None:
        """Wait until its head has been compared with the `torch` backend.

        Raises:
            SystemExit: The head is wrong.
        """
        if wrong := self._connection.recv():
            raise SystemExit(wrong)

    def seconds(self, step: str) -> float:
        """Return the time that a step of `STEPS` takes."""
        self._connection.send(step)
        taken: float = self._connection.recv()
        return taken

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join()


def _serve(connection: Connection) -> None:
    from benchmarks.ablation import WITHOUT, Subject

    threads = torch.get_num_threads()
    subject = Subject(TOKENS, training=True)
    torch.set_num_threads(threads)
    try:
        subject.check("the head")
    except SystemExit as wrong:
        connection.send(str(wrong))
        return
    connection.send("")
    changes: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "head, kernels on 1": WITHOUT["kernel threads"],
        "head, torch on 1": torch_on_one_thread,
        "head, `FreeThreads`": lambda: free_threads(subject.run),
    }
    with contextlib.suppress(EOFError):
        while True:
            step = connection.recv()
            with changes.get(step, contextlib.nullcontext)():
                taken, _ = timed(subject.run_floor if step == "floor" else subject.run)
            connection.send(taken)


def measure(workers: dict[str, Worker], load: str, repeats: int) -> list[Row]:
    """Time the steps of all processes in turn."""
    steps = [(setting, step) for setting in workers for step in STEPS[:2]]
    steps += [(DIVIDED, step) for step in STEPS[2:]]
    seconds: dict[tuple[str, str], list[float]] = {step: [] for step in steps}
    for number in range(repeats + 1):
        for setting, step in steps:
            taken = workers[setting].seconds(step)
            if number:  # the first round warms up
                seconds[setting, step].append(taken)
    rows = []
    for setting, step in steps:
        if step != "floor":
            what = setting + step.removeprefix("head")
            # A floor of all threads is none for a head on fewer.
            floor = seconds[setting, "floor"] if step == "head" else None
            rows.append(_row(load, what, seconds[setting, step], floor))
    return rows


def _row(load: str, what: str, head: list[float], floor: list[float] | None) -> Row:
    row = {
        "cell": load,
        "what": what,
        "head_s": statistics.median(head),
        "head_range_s": (min(head), max(head)),
        "rounds": len(head),
        "machine": where(machine()),
    }
    if floor is not None:
        row["floor_s"] = statistics.median(floor)
        row["ratio"] = statistics.median(a / b for a, b in zip(head, floor, strict=True))
    return row


def markdown_table(figures: dict[str, Any]) -> str:
    """Write the table of the documents from what `--json` wrote."""
    rows = {(row["cell"], row["what"]): row for row in figures["rows"]}
    lines = [
        f"{'; '.join(dict.fromkeys(row['machine'] for row in rows.values()))}: seconds of a "
        f"training step of the head over {TOKENS:,} tokens (median, lowest to highest), and of its "
        "floor, torch's time for the step's matrix products and convolutions alone, in turn.",
        "",
        "| threads | beside a busy process | its floor | ratio | quiet | its floor | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for what in dict.fromkeys(what for _, what in rows):
        cells = [_cells(rows.get((load, what))) for load in ("busy", "quiet")]
        lines.append(f"| {what} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cells(row: Row | None) -> str:
    if row is None:
        return " | | "
    low, high = row["head_range_s"]
    head = f"{row['head_s']:.2f} ({low:.2f} to {high:.2f})"
    return (
        f"{head} | {row['floor_s']:.2f} | {row['ratio']:.2f}" if "ratio" in row else f"{head} | |"
    )


if __name__ == "__main__":
    main()
