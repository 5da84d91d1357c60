"""Threads by what others leave free, on a machine whose clocks the tests set."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from muse_adapter.ops import FreeThreads, free_threads

TICKS = 100  # a second


class Machine:
    """Processors, of which this process may use some, and its time."""

    def __init__(self, stat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stat, self.wall, self.own, self.used = stat, 100.0, 50.0, [1000] * 8
        self.ours = {0, 1}
        monkeypatch.setattr(free_threads, "_STAT", stat)
        monkeypatch.setattr(os, "sysconf", lambda _: TICKS)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: self.ours)
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        self.go(0, 0, {})

    def go(self, seconds: float, own: float, used: dict[int, float]) -> None:
        """Let time go by, with seconds that this process and all processes used, by processor."""
        self.wall += seconds
        self.own += own
        for number, of_it in used.items():
            self.used[number] += round(of_it * TICKS)
        idle = round(self.wall * TICKS)
        lines = [
            f"cpu{number} {busy} 0 0 {idle} 7 0 0 0 5 5" for number, busy in enumerate(self.used)
        ]
        total = f"cpu  {sum(self.used)} 0 0 {8 * idle} 56 0 0 0 40 40"
        self.stat.write_text("\n".join([total, *lines, "intr 12 3", "ctxt 4"]) + "\n")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "stat", monkeypatch)


def test_a_thread_is_given_up_beside_a_busy_process_and_taken_back(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    shared.go(1, 2.0, {0: 1, 1: 1})
    assert free.adjust() == 2
    shared.go(1, 1.3, {0: 1, 1: 1})  # three threads on two processors
    assert free.adjust() == 1 == torch.get_num_threads()
    shared.go(1, 1.0, {0: 1, 1: 1})  # each has one
    assert free.adjust() == 1
    shared.go(1, 1.0, {0: 1, 1: 0.1})
    assert free.adjust() == 2 == torch.get_num_threads()


@pytest.mark.parametrize(
    ("processors", "others", "most", "expected"),
    [
        (8, 3.0, 4, 4),
        (8, 4.9, 4, 3),
        (8, 8.0, 4, 1),
        (4, 0.2, 4, 4),
        (1, 0.9, 1, 1),
    ],
)
def test_threads_are_what_is_free_of_at_most_as_many_as_wanted(
    threads, shared, processors: int, others: float, most: int, expected: int
) -> None:
    threads(1)
    shared.ours = set(range(processors))
    free = FreeThreads(most)
    shared.go(2, 2.0, {number: 2 * others / processors for number in range(processors)})
    shared.own -= 2.0  # all of that time was others'
    assert free.adjust() == expected == torch.get_num_threads()


def test_processors_that_are_not_ours_do_not_count(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    shared.go(1, 1.9, {0: 1, 1: 1} | {number: 1 for number in range(2, 8)})
    assert free.adjust() == 2


def test_a_short_time_says_nothing_and_is_not_forgotten(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    for _ in range(2):
        shared.go(0.2, 0.2, {0: 0.2, 1: 0.2})
    assert free.adjust() == 1
    shared.go(0.2, 0.2, {0: 0.2})
    assert free.adjust() == 1  # not looked at yet
    shared.go(0.2, 0.2, {0: 0.2})
    assert free.adjust() == 2


def test_a_system_that_does_not_tell_leaves_the_threads(threads, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(free_threads, "_STAT", tmp_path / "missing")
    threads(2)
    assert FreeThreads(1).adjust() == 2


def test_no_thread_is_refused() -> None:
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        FreeThreads(0)


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="needs Linux")
def test_the_clocks_of_this_machine() -> None:
    first = free_threads._clocks()
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    wall, machine, own = (b - a for a, b in zip(first, free_threads._clocks(), strict=True))
    assert wall >= 0.3 and own > 0
    # Ticks of 10 ms, of at most all our processors.
    assert own - 0.1 <= machine <= (wall + 0.1) * len(os.sched_getaffinity(0))
