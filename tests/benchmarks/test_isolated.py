"""Functions in processes of their own: what is measured there, and what goes wrong."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch

from benchmarks.heads.variants import Variant
from benchmarks.heads.workload import Case, measure
from benchmarks.isolated import DiedError, isolated
from benchmarks.measure import MemoryMeter
from tests.support.small_benchmarks import ON_CPU, small

LOADED = "set(__import__('sys').modules)"


def memory_of_64_mib() -> int:
    meter = MemoryMeter()
    torch.ones(1 << 26, dtype=torch.uint8)
    return meter.added()


def test_the_memory_meter_sees_what_is_freed_again() -> None:
    added = isolated(memory_of_64_mib, preloaded=True)
    assert 0.95 * (1 << 26) < added < 1.2 * (1 << 26)


def test_an_interpreter_of_its_own_loads_nothing_beforehand() -> None:
    loaded = isolated(eval, LOADED)
    assert "benchmarks.heads.preload" not in loaded and "benchmarks.heads.workload" not in loaded


def test_a_row_of_an_isolated_process() -> None:
    settings = small(threads=1, limit_s=0.05)
    outcome = isolated(
        measure, "attention-plain", Case("inference", 16, (8, 8), 1), settings, preloaded=True
    )
    assert outcome.timing.median > 0 and outcome.parameters > 0 and len(outcome.result) == 32
    # One layer's scores and their softmax, 16 * (1 + 16 + 64 + 256) tokens squared, in float32.
    weights = 4 * (16 * (1 + 16 + 64 + 256)) ** 2
    assert 2 * weights < outcome.peak_bytes < 4 * weights


def test_preloaded_processes_find_the_libraries_loaded() -> None:
    """What fails to load beforehand says nothing, and makes every row half a second slower."""
    expected = {"torch.fx.experimental.symbolic_shapes"}
    if isinstance(ON_CPU["muse-numba"], Variant):
        expected |= {"muse_adapter.ops.numba_cpu.function"}
    # By a function that imports nothing itself.
    assert expected <= isolated(eval, LOADED, preloaded=True)


def too_much() -> int:
    return torch.empty(1 << 50, dtype=torch.uint8).numel()


def die() -> None:
    os._exit(3)


def fail() -> None:
    raise KeyError("no such thing")


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (too_much, MemoryError, "can't allocate memory"),
        (die, DiedError, "ended with code 3"),
        (fail, RuntimeError, "KeyError: 'no such thing'"),
    ],
    ids=["memory", "death", "error"],
)
def test_what_goes_wrong_in_an_isolated_process(
    function: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        isolated(function, preloaded=True)
