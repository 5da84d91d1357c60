"""Tasks on several threads: their order, errors, and kernels that idle threads help."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from functools import partial

import pytest
import torch

from muse_adapter.ops import backends

if backends()["numba"].reason is not None:
    pytest.skip(f"backend numba: {backends()['numba'].reason}", allow_module_level=True)

from muse_adapter.ops.numba_cpu import team
from muse_adapter.ops.numba_cpu.parallel import run_parallel, run_tasks
from muse_adapter.ops.numba_cpu.schedule import Schedule, Task, current

needs_team = pytest.mark.skipif(
    team.parallel_region() is None, reason="torch has no GNU OpenMP here"
)


@pytest.fixture(params=[1, 2, 3, "no team"])
def count(request, monkeypatch, threads):
    """Threads that run the tasks, with torch's team or without."""
    if request.param == "no team":
        monkeypatch.setattr(team, "parallel_region", lambda: None)
        return 3
    threads(request.param)
    return request.param


def chains(record):
    """Two chains, each task of which also needs one of eight that need nothing."""
    first = [Task(partial(record, ("first", number), [])) for number in range(8)]
    tasks = list(first)
    for chain in "ab":
        before: list[Task] = []
        for number, other in enumerate(first):
            needs = [("first", number), *([(chain, number - 1)] if number else [])]
            before = [Task(partial(record, (chain, number), needs), [other, *before])]
            tasks += before
    return tasks


def test_a_task_runs_after_those_it_needs(count):
    ended = []

    def record(name, needs):
        assert all(need in ended for need in needs), (name, ended)
        time.sleep(0.001)
        ended.append(name)

    run_tasks(chains(record), count)
    assert len(ended) == 24 and len(set(ended)) == 24


def test_nothing_to_do(count):
    run_tasks([], count)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_ends_the_work(count, error):
    """It reaches the caller, nobody waits for ever, and the next call works."""
    ended = []

    def record(name, needs):
        if name == ("a", 3):
            raise error("in a task")
        ended.append(name)

    with pytest.raises(error, match="in a task"):
        run_tasks(chains(record), count)
    assert ("a", 4) not in ended
    run_tasks(chains(lambda name, needs: None), count)


def test_no_gradient_and_the_callers_inference_mode(count):
    seen = []

    def look():
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    with torch.inference_mode():
        run_tasks([Task(look) for _ in range(8)], count)
    with torch.no_grad():
        run_tasks([Task(look) for _ in range(8)], count)
    assert seen == [(False, True)] * 8 + [(False, False)] * 8


@needs_team
def test_torch_keeps_to_the_thread_of_the_task(threads):
    """A task does not start a team of its own: products of one slice need no second thread."""
    threads(2)
    a = torch.randn(512, 512)
    expected, got = a @ a, [torch.empty(0)] * 4

    def multiply(number):
        got[number] = a @ a

    run_tasks([Task(partial(multiply, number)) for number in range(4)], 2)
    before = threads_of_process()
    run_tasks([Task(partial(multiply, number)) for number in range(4)], 2)
    assert threads_of_process() == before
    for product in got:
        torch.testing.assert_close(product, expected)


def threads_of_process():
    with open("/proc/self/status") as status:
        return next(line for line in status if line.startswith("Threads:"))


@needs_team
def test_idle_threads_help_a_kernel(threads):
    """The only task runs a kernel: the other thread comes to help, and the task waits for it."""
    threads(2)
    callers, ended = set(), []

    def kernel(memory):
        callers.add(threading.get_native_id())
        for _ in range(1000):
            if len(callers) == 2:
                break
            time.sleep(0.01)
        time.sleep(0.01)
        ended.append(memory)

    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
    address = ctypes.cast(function, ctypes.c_void_p).value

    def task():
        run_parallel(address, 1, 2)
        assert len(ended) >= 2

    run_tasks([Task(task)], 2)
    assert len(callers) == 2


@needs_team
def test_several_callers_at_once(threads):
    threads(2)
    ended: list[list] = [[], [], []]
    callers = [
        threading.Thread(
            target=run_tasks, args=(chains(lambda name, needs, own=own: own.append(name)), 2)
        )
        for own in ended
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60)
    assert [len(set(own)) for own in ended] == [24, 24, 24]


@needs_team
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_in_a_forked_child(threads):
    threads(2)
    run_tasks(chains(lambda name, needs: time.sleep(0.001)), 2)
    child = os.fork()
    if child == 0:
        signal.alarm(30)  # a child that waits for its parent's threads ends by it
        ended: list = []
        run_tasks(chains(lambda name, needs: ended.append(name)), 2)
        os._exit(0 if len(ended) == 24 else 1)
    assert os.waitpid(child, 0)[1] == 0
    run_tasks(chains(lambda name, needs: None), 2)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_while_helping_a_kernel_keeps_nobody_waiting(error):
    """As Ctrl-C gives it to a main thread that helps the kernel of another one."""
    started, owner_names = threading.Event(), []

    def kernel():
        if threading.current_thread().name in owner_names:
            assert started.wait(10)
        else:
            started.set()
            raise error

    def task():
        owner_names.append(threading.current_thread().name)
        current().run_kernel(kernel)

    schedule = Schedule([Task(task)])
    others = [threading.Thread(target=schedule.work, daemon=True) for _ in range(2)]
    for thread in others:
        thread.start()
    for thread in others:
        thread.join(20)
    assert not any(thread.is_alive() for thread in others)
    with pytest.raises(error):
        schedule.raise_error()
