"""What the tests of `python -m benchmarks` share: its heads, tiny sizes, outcomes without a run."""

from __future__ import annotations

import math
from typing import Any

import torch

from benchmarks.heads.variants import Variant, variants
from benchmarks.heads.workload import Case, Outcome, Settings
from benchmarks.measure import Timing

ON_CPU = variants("cpu", torch.float32)
HERE = {name: head for name, head in ON_CPU.items() if isinstance(head, Variant)}
THREADS = str(torch.get_num_threads())
SMALL = ["--device", "cpu", "--dim", "32", "--grid", "2", "--limit", "5", "--threads", THREADS]
SMALL += ["--pairs", "3", "--batch", "1"]
# A run over four lengths of three heads.
RUN = [*SMALL, "--heads", "muse-torch", "attention-flash", "attention-plain"]
RUN += ["--frames", "2", "4", "8", "40"]


def small(**changes: Any) -> Settings:
    given = {"frames": (2, 3), "grids": ((2, 2),), "batches": (1,), "limit_s": 0.05}
    return Settings(**{**given, "pairs": 3, "pair_batch": 2, "dim": 32, **changes})


class FakeMeasure:
    """Outcomes without a run: linear time for MUSE, quadratic for attention."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Case]] = []
        self.interrupt_after = math.inf
        self.results: dict[str, float] = {}
        self.spread = 0.01

    def __call__(self, name: str, case: Case, settings: Settings) -> Outcome:
        if len(self.asked) >= self.interrupt_after:
            raise KeyboardInterrupt
        self.asked.append((name, case))
        quadratic = name.startswith("attention")
        seconds = 2e-6 * case.tokens**2 if quadratic else 1e-5 * case.tokens
        if name == "attention-plain" and case.frames == 8:
            raise MemoryError("you tried to allocate 1 byte")
        low, high = seconds * (1 - self.spread), seconds * (1 + self.spread)
        result = [self.results.get(name, 1.0)]
        timing = Timing(low, seconds, high, rounds=5)
        return Outcome(timing, 1000 * case.tokens, 1, 10, result)
