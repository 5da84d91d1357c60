"""The timer and the memory meter."""

from __future__ import annotations

import gc
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from muse_adapter.ops.load import look

MAX_SPREAD = 0.1  # quartile distance over median of a quiet machine
MIN_ROUNDS = 3  # rounds that a spread can be told from
# Processors that others may use beyond the idle ones; for less, /proc/stat is too coarse.
MAX_OTHER_LOAD = 0.25
MIN_LOAD_S = 0.2  # shortest time over which /proc/stat says anything
MIN_OWN_PROCESSORS = 0.9  # less: a run, which always has something to do, waited for a processor
MAX_WAITING = 0.5  # threads beyond the processors, of the whole machine over the last minute
MIN_BLOCK_S = 2e-3  # shorter runs are timed several at once
WARM_UP_RUNS = {"cpu": 1, "cuda": 3}


class Timing(NamedTuple):
    """Seconds of a run.

    Attributes:
        low, median, high: Quartiles over the rounds.
        rounds: How many there were.
        other_load: Processors that other processes used beyond those that were idle (0 where the
            system does not say).
        own_processors: Processor time of this process over the time by the clock.
        waiting: Load of the last minute beyond the number of processors.
    """

    low: float
    median: float
    high: float
    rounds: int
    other_load: float = 0.0
    own_processors: float = 1.0
    waiting: float = 0.0

    @property
    def spread(self) -> float:
        """Distance of the quartiles."""
        return self.high - self.low

    @property
    def busy(self) -> bool:
        """Whether the machine was too busy, or the rounds too few, to believe the median."""
        return self.rounds < MIN_ROUNDS or self.spread > MAX_SPREAD * self.median or self.disturbed

    @property
    def disturbed(self) -> bool:
        """Whether others used the machine meanwhile."""
        return (
            self.other_load > MAX_OTHER_LOAD
            or self.own_processors < MIN_OWN_PROCESSORS
            or self.waiting > MAX_WAITING
        )


def timed(run: Callable[[], Any], device: str = "cpu", runs: int = 1) -> tuple[float, Any]:
    """Run a function, until the device has finished.

    Args:
        run: The function.
        device: "cpu", or "cuda": timed between device events.
        runs: How often it is called.

    Returns:
        Seconds of a call, and the result of the last one.
    """
    result = None
    if device == "cuda":
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(runs):
            result = run()
        last.record()
        last.synchronize()
        return first.elapsed_time(last) / 1e3 / runs, result
    start = time.perf_counter()
    for _ in range(runs):
        result = run()
    return (time.perf_counter() - start) / runs, result


def in_turn(
    alternatives: Mapping[str, Callable[[], Any]],
    rounds: int,
    *,
    device: str = "cpu",
    min_s: float = 0.0,
    max_s: float = 0.0,
) -> dict[str, Timing]:
    """Time alternatives in turn, so that noise meets all of them.

    Args:
        alternatives: Functions by name. Each is warmed up first.
        rounds: Rounds at least.
        device: "cpu" or "cuda".
        min_s: Seconds that the rounds take at least.
        max_s: Seconds after which no further round begins; until then rounds go on while the
            spread is more than half of what a quiet machine may show.

    Returns:
        The timing of each.
    """
    runs = {}
    for name, run in alternatives.items():
        for _ in range(WARM_UP_RUNS[device]):
            seconds, _ = timed(run, device)  # compilation, allocation, caches
        # A GPU's runs stay single: together they would hide what a launch costs.
        runs[name] = 1 if device == "cuda" else max(1, math.ceil(MIN_BLOCK_S / seconds))
    times: dict[str, list[float]] = {name: [] for name in alternatives}
    start, load = time.perf_counter(), _Load()
    done, spent, steady = 0, 0.0, False
    while done < rounds or spent < min_s or (spent < max_s and not steady):
        for name, run in alternatives.items():
            times[name].append(timed(run, device, runs[name])[0])
        done += 1
        spent = time.perf_counter() - start
        steady = all(_steady(values) for values in times.values())
    found = load.found(device)
    return {name: quartiles(values)._replace(**found) for name, values in times.items()}


def once(run: Callable[[], Any]) -> Timing:
    """Time a single run on the CPU that is too long to be repeated."""
    load = _Load()
    seconds, _ = timed(run)
    return quartiles([seconds])._replace(**load.found("cpu"))


def _waiting() -> float:
    """Return the load of the last minute beyond the processors, 0 where the system has none."""
    if not hasattr(os, "getloadavg"):
        return 0.0
    return max(0.0, os.getloadavg()[0] - (os.cpu_count() or 1))


def quartiles(times: list[float], other_load: float = 0.0) -> Timing:
    """Summarise the seconds of single runs."""
    if len(times) == 1:
        return Timing(times[0], times[0], times[0], 1, other_load)
    low, median, high = statistics.quantiles(times, n=4, method="inclusive")
    return Timing(low, median, high, len(times), other_load)


def _steady(times: list[float]) -> bool:
    found = quartiles(times)
    return found.rounds > MIN_ROUNDS and found.spread <= MAX_SPREAD / 2 * found.median


class _Load:
    """What the machine and this process did meanwhile, of which a `Timing` tells."""

    def __init__(self) -> None:
        self.start = look()

    def found(self, device: str) -> dict[str, Any]:
        """Return the load, as `Timing` names it."""
        now = look()
        wall, own = now.wall - self.start.wall, now.own - self.start.own
        idle = len(now.processors) - torch.get_num_threads()  # torch's threads leave them so
        others = 0.0
        if wall >= MIN_LOAD_S:
            others = max(0.0, now.others_since(self.start) - max(0, idle))
        return {
            "other_load": others,
            "own_processors": 1.0 if device == "cuda" else own / wall,
            "waiting": _waiting(),
        }


class MemoryMeter:
    """The most memory held at once, from when the meter is made.

    On a CPU it is this process's resident memory, whose peak never falls: use a process that has
    done nothing else (`benchmarks.isolated`). On a GPU it is what torch has allocated.

    Args:
        device: "cpu" or "cuda".

    Attributes:
        held: Bytes that were there before.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        if device == "cuda":
            gc.collect()
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.held = torch.cuda.memory_allocated()
        else:
            self.held = self.peak()

    def peak(self) -> int:
        """Return the bytes of the peak, those held before included."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        status = Path("/proc/self/status")
        if status.exists():  # `ru_maxrss` begins with the memory of the parent process
            line = next(line for line in status.read_text().splitlines() if line[:5] == "VmHWM")
            return int(line.split()[1]) * 1024
        unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, else KiB
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def added(self) -> int:
        """Return the bytes of the peak above those held before."""
        return self.peak() - self.held
