"""Whether the steps of a training take as long as they should, and fewer threads if not."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

import torch

from examples.quickstart.settings import Settings
from muse_adapter.ops import FreeThreads, backend_for

# Seconds of a step of the default run on 2 quiet cores of an AMD EPYC, 2026-11-28.
MEASURED_S = {"muse": 0.38, "mean_pool": 0.07}
RECENT = 5  # steps that are looked at together
FAR = 2.0  # times the expectation


def expected_seconds(settings: Settings, device: str) -> float | None:
    """Return the measured seconds of a step, None for settings that were not measured."""
    default = Settings(head=settings.head, seed=settings.seed, steps=settings.steps)
    if settings != default or device != "cpu" or backend_for(torch.device(device)) != "numba":
        return None
    return MEASURED_S.get(settings.head)


class Pace:
    """Watches the seconds of the steps, and when they are far from the expectation, says so.

    From then on torch has as many threads as other processes leave free. Not before: on another
    number of threads the last digits differ, and a quiet run is to be repeatable bit for bit.

    Args:
        expected: Seconds of a step (None: not known). The fastest step so far, if it took less, is
            what is expected.
    """

    def __init__(self, expected: float | None) -> None:
        self.expected = expected
        self.recent: list[float] = []
        self.fastest = float("inf")
        self.free: FreeThreads | None = None
        self.began = _clocks()

    def step(self, seconds: float) -> str | None:
        """Take note of a step; returns a warning, at most once."""
        if self.free is not None:
            self.free.adjust()
            return None
        self.recent = [*self.recent[1 - RECENT :], seconds]
        self.fastest = min(self.fastest, seconds)
        expected = min(self.fastest, self.expected or self.fastest)
        median = statistics.median(self.recent)
        if len(self.recent) < RECENT or median <= FAR * expected:
            return None
        self.free = FreeThreads()
        return f"steps take {median:.1f} s, {expected:.1f} s were expected. {self._remedy()}"

    def _remedy(self) -> str:
        threads = torch.get_num_threads()
        wall, own = (now - before for now, before in zip(_clocks(), self.began, strict=True))
        got = f"this process got {own / wall:.1f} processors for its {threads} threads"
        if threads == 1:
            return f"The machine may be slower, or shared: {got}"
        assert self.free is not None
        remedy = (
            "from now on there are as many as others leave processors"
            if self.free.sees_others
            else "interrupt, and go on from the last checkpoint with --threads 1"
        )
        return (
            f"Where other processes use the machine, threads wait for each other ({got}): {remedy}"
        )


def _clocks() -> Sequence[float]:
    return time.perf_counter(), time.process_time()
