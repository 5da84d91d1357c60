"""The timer: alternatives in turn, as long as it takes, and whether the machine was quiet."""

from __future__ import annotations

import time

import pytest

from benchmarks import measure
from benchmarks.measure import MIN_BLOCK_S, Timing, in_turn, quartiles, timed
from muse_adapter.ops.load import Look


def test_alternatives_run_in_turn() -> None:
    called: list[str] = []

    def run(name: str, seconds: float) -> None:
        called.append(name)
        time.sleep(seconds)

    alternatives = {"a": lambda: run("a", 2 * MIN_BLOCK_S), "b": lambda: run("b", 4 * MIN_BLOCK_S)}
    timings = in_turn(alternatives, 3)
    assert called == ["a", "b"] * 4  # the first time to warm up
    assert all(timing.rounds == 3 for timing in timings.values())
    assert timings["a"].median >= 2 * MIN_BLOCK_S and timings["b"].median >= 4 * MIN_BLOCK_S


def test_short_runs_are_timed_several_at_once() -> None:
    called: list[None] = []
    timing = in_turn({"": lambda: called.append(None)}, 2)[""]
    assert len(called) > 100 and timing.rounds == 2 and timing.median < MIN_BLOCK_S / 10


@pytest.mark.parametrize(
    ("min_s", "max_s", "noise", "rounds"),
    [(0.0, 0.0, 0.0, 4), (5.5, 0.0, 0.0, 6), (0.0, 9.0, 0.0, 4), (0.0, 20.0, 0.5, 20)],
    ids=["rounds", "at least so long", "steady at once", "never steady"],
)
def test_rounds_go_on_until_they_are_steady(
    min_s: float, max_s: float, noise: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock of our own: a run takes a second, give or take the noise."""
    clock = [0.0]
    monkeypatch.setattr(measure.time, "perf_counter", lambda: clock[0])
    signs = [1]

    def run() -> None:
        clock[0] += 1.0 + noise * signs[0]
        signs[0] = -signs[0]

    assert in_turn({"": run}, 4, min_s=min_s, max_s=max_s)[""].rounds == rounds


def test_quartiles() -> None:
    assert quartiles([2.0]) == Timing(2.0, 2.0, 2.0, 1)
    found = quartiles([5.0, 1.0, 2.0, 4.0, 3.0])
    assert found == Timing(2.0, 3.0, 4.0, 5) and found.spread == 2.0


def test_the_result_of_a_timed_run() -> None:
    seconds, result = timed(lambda: 7)
    assert seconds > 0 and result == 7


def test_a_machine_is_busy_where_the_run_waited_for_a_processor() -> None:
    quiet = Timing(1.0, 1.0, 1.0, 4)
    assert not quiet._replace(own_processors=0.95, waiting=0.4).busy
    assert quiet._replace(own_processors=0.8).busy and quiet._replace(waiting=0.6).busy


def test_processor_time_is_told_from_time_by_the_clock() -> None:
    def work() -> None:
        end = time.process_time() + 0.05
        while time.process_time() < end:
            pass

    assert in_turn({"": lambda: time.sleep(0.02)}, 3)[""].own_processors < 0.5
    assert in_turn({"": work}, 3)[""].own_processors > 0


@pytest.mark.parametrize(
    ("low", "high", "rounds", "other_load", "busy"),
    [
        (1.0, 1.09, 4, 0.0, False),
        (0.9, 1.1, 4, 0.0, True),
        (1.0, 1.0, 2, 0.0, True),
        (1.0, 1.0, 4, 0.2, False),
        (1.0, 1.0, 4, 0.3, True),
    ],
)
def test_when_a_machine_counts_as_busy(
    low: float, high: float, rounds: int, other_load: float, busy: bool
) -> None:
    assert Timing(low, 1.0, high, rounds, other_load).busy is busy


@pytest.mark.parametrize(
    ("processors", "threads", "wall", "machine", "own", "expected"),
    [
        (2, 2, 10.0, 20.0, 20.0, 0.0),
        (2, 2, 10.0, 20.0, 15.0, 0.5),
        (2, 1, 10.0, 20.0, 10.0, 0.0),  # the other one was idle
        (4, 2, 10.0, 40.0, 15.0, 0.5),
        (0, 2, 10.0, 0.0, 15.0, 0.0),  # the system does not say
        (2, 2, 0.1, 0.2, 0.0, 0.0),  # too short to tell
    ],
    ids=["alone", "busy", "idle processor", "four", "unknown", "short"],
)
def test_load_of_other_processes(
    processors: int, threads: int, wall: float, machine: float, own: float, expected: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    names = [f"cpu{number}" for number in range(processors)]
    monkeypatch.setattr(measure.torch, "get_num_threads", lambda: threads)
    before = Look(1.0, 1.0, dict.fromkeys(names, 1.0))
    after = Look(1.0 + wall, 1.0 + own, {name: 1.0 + machine / processors for name in names})
    looks = iter([before, after])
    monkeypatch.setattr(measure, "look", lambda: next(looks))
    timing = measure.once(lambda: None)
    assert timing.other_load == pytest.approx(expected)
    assert timing.own_processors == pytest.approx(own / wall)
    assert timing.disturbed is (expected > 0.25 or own < 0.9 * wall or timing.waiting > 0.5)
