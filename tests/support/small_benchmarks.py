"""What the tests of `python -m benchmarks` share: its heads, and tiny sizes."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.contenders import Contender, contenders
from benchmarks.settings import Settings

ON_CPU = contenders("cpu", torch.float32)
HERE = {name: head for name, head in ON_CPU.items() if isinstance(head, Contender)}
THREADS = str(torch.get_num_threads())
SMALL = ["--device", "cpu", "--dim", "32", "--grid", "2", "--limit", "5", "--threads", THREADS]
SMALL += ["--pairs", "3", "--batch", "1"]


def small(**changes: Any) -> Settings:
    given = {"frames": (2, 3), "grids": ((2, 2),), "batches": (1,), "limit_s": 0.05}
    return Settings(**{**given, "pairs": 3, "pair_batch": 2, "dim": 32, **changes})
