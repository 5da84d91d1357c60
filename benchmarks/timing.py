"""Times and peak memory of one head on one case."""

from __future__ import annotations

import statistics
import time
from typing import NamedTuple

import torch
from torch.utils.benchmark import Timer

from benchmarks.contenders import Contender, contenders
from benchmarks.measure import peak_bytes
from benchmarks.settings import DTYPES, Case, Settings
from benchmarks.work import Work, sample

SPREAD = 0.1  # of the median: beyond it a machine counts as busy
ENOUGH = 3  # repeats that a spread can be told from
LEAST = 5  # repeats on a GPU


class Outcome(NamedTuple):
    """What one head did on one case.

    Attributes:
        median, low, high: seconds of a run; the quartiles.
        runs: timed blocks that these are made of.
        peak_bytes: the most that a run held, above `held_bytes`: on a CPU resident memory, on a GPU
            what torch has allocated.
        held_bytes: what was there before the runs: libraries (CPU only), weights and tokens.
        parameters: of the head.
        result: numbers of the first run's result.
    """

    median: float
    low: float
    high: float
    runs: int
    peak_bytes: int
    held_bytes: int
    parameters: int
    result: list[float]

    @property
    def busy(self) -> bool:
        """Whether repeats differ too much to be believed, or are too few to tell."""
        return self.runs < ENOUGH or self.high - self.low > SPREAD * self.median


def measure(name: str, case: Case, settings: Settings) -> Outcome:
    """Time a head; on a CPU in a process that has done nothing else, see `in_fresh_process`.

    Args:
        name: a key of `contenders`.
        case: the tokens, and what is done with them.
        settings: device, type, width and threads.
    """
    torch.set_num_threads(settings.threads)
    contender = contenders(settings.device, DTYPES[settings.dtype])[name]
    assert isinstance(contender, Contender), contender
    warm_up = Work(contender, case._replace(frames=1, grid=(2, 2), batch=1), settings)
    warm_up()  # loads and compiles the kernels
    work = Work(contender, case, settings, warm_up.module)
    measured = _on_cpu if settings.device == "cpu" else _on_gpu
    times, peak, held, result = measured(work, settings)
    low, median, high = quartiles(times)
    parameters = sum(weight.numel() for weight in work.module.parameters())
    return Outcome(median, low, high, len(times), peak, held, parameters, result)


Measured = tuple[list[float], int, int, list[float]]


def _on_cpu(work: Work, settings: Settings) -> Measured:
    held = peak_bytes()
    torch.manual_seed(2)  # of dropout, in the run whose result is kept
    start = time.perf_counter()
    result = sample(work())  # this run is the warm-up too
    longest = max(settings.limit_s / 2, (ENOUGH + 1) * (time.perf_counter() - start))
    timing = Timer(
        "work()", globals={"work": work}, num_threads=settings.threads
    ).adaptive_autorange(SPREAD / 2, min_run_time=_shortest(settings), max_run_time=longest)
    return timing.times, peak_bytes() - held, held, result


def _on_gpu(work: Work, settings: Settings) -> Measured:
    torch.manual_seed(2)
    result = sample(work())
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated()
    work()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - held
    times: list[float] = []
    while len(times) < LEAST or sum(times) < _shortest(settings):
        if sum(times) > 2 * settings.limit_s:
            break
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        work()
        last.record()
        last.synchronize()
        times.append(first.elapsed_time(last) / 1e3)
    return times, peak, held, result


def quartiles(times: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3


def _shortest(settings: Settings) -> float:
    """Seconds that repeats take at least."""
    return min(0.2, settings.limit_s / 10)
