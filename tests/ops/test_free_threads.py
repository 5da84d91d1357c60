"""Threads by what others leave free, on a machine whose clocks the tests set."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import torch

from muse_adapter.ops import FreeThreads, load

TICKS = 100  # a second
PROCESSORS = 8
# Columns of a processor's line: those that are work of somebody, and those that are not.
WORK = {"user": 0, "nice": 1, "system": 2, "interrupts": 5, "soft interrupts": 6, "stolen": 7}
NO_WORK = {"idle": 3, "waiting for disks": 4, "guest": 8, "guest, nice": 9}


class Machine:
    """Processors, of which this process may use some, and its time."""

    def __init__(self, proc: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stat = proc / "stat"
        self.tasks = proc / "self" / "task"
        self.wall, self.own = 100.0, 50.0
        self.columns = [[1000] * 10 for _ in range(PROCESSORS)]
        self.masks: dict[int, set[int]] = {}
        self.bind({77: {0, 1}})
        monkeypatch.setattr(load, "_PROC", proc)
        monkeypatch.setattr(os, "sysconf", lambda _: TICKS)
        monkeypatch.setattr(os, "sched_getaffinity", self.masks.__getitem__, raising=False)
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.own)
        self.go(0, 0, {})

    def bind(self, masks: dict[int, set[int]]) -> None:
        """Give the process these threads, with the processors of each."""
        self.masks.update(masks)
        for thread in masks:
            (self.tasks / str(thread)).mkdir(parents=True, exist_ok=True)

    def go(self, seconds: float, own: float, used: dict[int, float], column: int = 0) -> None:
        """Let time go by, with seconds that this process and all processes used, by processor."""
        self.wall += seconds
        self.own += own
        for number, of_it in used.items():
            self.columns[number][column] += round(of_it * TICKS)
        lines = [
            f"cpu{number} {' '.join(map(str, columns))}"
            for number, columns in enumerate(self.columns)
        ]
        total = " ".join(str(sum(column)) for column in zip(*self.columns, strict=True))
        self.stat.write_text("\n".join([f"cpu  {total}", *lines, "intr 12 3", "", "ctxt 4"]) + "\n")


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_thread_is_given_up_beside_a_busy_process_and_taken_back(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    assert free.sees_others
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
        (4, 0.3, 4, 3),
        (2, 0.4, 2, 2),
        (1, 0.9, 1, 1),
    ],
)
def test_threads_are_what_is_free_of_at_most_as_many_as_wanted(
    threads, shared, processors: int, others: float, most: int, expected: int
) -> None:
    threads(1)
    shared.bind({77: set(range(processors))})
    free = FreeThreads(most)
    shared.go(4, 0.0, {number: 4 * others / processors for number in range(processors)})
    assert free.adjust() == expected == torch.get_num_threads()


@pytest.mark.parametrize("column", [*WORK.values(), *NO_WORK.values()], ids=[*WORK, *NO_WORK])
def test_work_of_every_kind_counts_and_nothing_else(threads, shared, column: int) -> None:
    threads(2)
    free = FreeThreads()
    shared.go(1, 0.0, {0: 0.9}, column)
    assert free.adjust() == (1 if column in WORK.values() else 2)


def test_processors_that_are_not_ours_do_not_count(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    shared.go(1, 1.9, dict.fromkeys(range(PROCESSORS), 1.0))
    assert free.adjust() == 2


def test_processors_of_all_threads_are_ours(threads, shared) -> None:
    threads(2)
    shared.bind({77: {0}, 78: {3}})  # each is bound to one, as by OMP_PROC_BIND
    free = FreeThreads()
    shared.go(1, 1.9, {0: 1, 3: 1})
    assert free.sees_others and free.adjust() == 2
    shared.go(1, 1.0, {0: 1, 3: 1})
    assert free.adjust() == 1


def test_where_fewer_processors_are_seen_than_threads_nothing_is_changed(threads, shared) -> None:
    threads(2)
    shared.bind({77: {0}})  # the other thread of OpenMP does not exist yet
    free = FreeThreads()
    shared.go(1, 0.5, {0: 1})
    assert not free.sees_others and free.adjust() == 2


def test_a_short_time_says_nothing_and_is_not_forgotten(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    for expected in (2, 1):
        shared.go(0.3, 0.3, {0: 0.3, 1: 0.3})
        assert free.adjust() == expected
    for expected in (1, 2):
        shared.go(0.3, 0.3, {0: 0.3})
        assert free.adjust() == expected


def test_a_processor_that_goes_offline_is_left_out(threads, shared) -> None:
    threads(2)
    free = FreeThreads()
    shared.go(1, 1.0, {0: 1, 1: 1})
    shared.stat.write_text(shared.stat.read_text().replace("cpu1 ", "offline "))
    assert free.adjust() == 2
    shared.go(1, 1.0, {0: 1, 1: 1})
    assert free.adjust() == 2  # it came back: its ticks since the start are not of this second
    shared.go(1, 1.0, {0: 1, 1: 1})
    assert free.adjust() == 1


@pytest.mark.parametrize("content", [None, b"cpu0 many\n", b"cpu0 \xff\n", b"cpu 1 2 3 4\n", b""])
def test_a_system_that_does_not_tell_leaves_the_threads(
    threads, shared, content: bytes | None
) -> None:
    threads(2)
    shared.stat.unlink()
    if content is not None:
        shared.stat.write_bytes(content)
    free = FreeThreads(1)
    shared.wall += 1
    assert not free.sees_others and free.adjust() == 2


def test_a_system_without_masks_leaves_the_threads(threads, shared, monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    threads(2)
    assert not FreeThreads().sees_others and FreeThreads(1).adjust() == 2


def test_zero_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="most must be at least 1, got 0"):
        FreeThreads(0)


def test_the_clocks_of_this_machine() -> None:
    if not FreeThreads(1).sees_others:
        pytest.skip("this system does not say what its processors do")
    first, end = load.look(), time.perf_counter() + 0.3
    while time.perf_counter() < end:
        pass
    last = load.look()
    wall, own = last.wall - first.wall, last.own - first.own
    used = sum(last.processors.values()) - sum(first.processors.values())
    assert wall >= 0.3 and own > 0
    # Ticks of 10 ms, of all processors at most.
    assert own - 0.1 <= used <= (wall + 0.1) * len(last.processors)
