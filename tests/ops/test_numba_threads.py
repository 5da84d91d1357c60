"""The numba backend on any threads: several callers, forks, errors, a busy machine."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import statistics
import subprocess
import sys
import textwrap
import threading
import time

import pytest
import torch

from muse_adapter.ops.numba_cpu import NUMBA as backend
from tests.support.numba_scans import (
    draw,
    gradients,
    identical,
    options,
    scan,
)

if backend.unavailable() is not None:
    pytest.skip(f"backend numba: {backend.unavailable()}", allow_module_level=True)

from muse_adapter.ops.numba_cpu import pool, team
from muse_adapter.ops.numba_cpu.parallel import run_parallel

pytestmark = pytest.mark.usefixtures("nan_memory")


# Large enough that the work is shared.
SHARED = (3, 700, 80, 16)


def shared_work(seed=0, shape=SHARED):
    arguments = draw(torch.float32, *shape, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    cotangents = tuple(torch.randn(size, generator=generator) for size in (shape[:3], (3, 80, 16)))
    return gradients(scan, arguments, cotangents, **options())


@pytest.fixture
def run_beside():
    """Starts code in another process, which ends with the test, and returns its first line."""
    running = []

    def start(code):
        command = [sys.executable, "-c", textwrap.dedent(code)]
        running.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return running[-1].stdout.readline()

    yield start
    for process in running:
        process.kill()
        process.communicate()


def test_the_same_bits_with_any_number_of_threads(threads):
    threads(1)
    expected = shared_work()
    for count in (2, 3, 5):
        threads(count)
        identical(shared_work(), expected)


def test_several_threads_at_once(threads):
    threads(2)
    expected = [shared_work(seed) for seed in range(3)]
    failures = []

    def work(seed):
        try:
            for _ in range(3):
                identical(shared_work(seed), expected[seed])
        except BaseException as error:
            failures.append(error)

    running = [threading.Thread(target=work, args=(seed,)) for seed in range(3)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join(60)
    assert not failures and not any(thread.is_alive() for thread in running)


@pytest.fixture(params=["torch's threads", "a pool"])
def helpers(request, monkeypatch):
    """Each kind of threads that share work; whether they are a pool's."""
    if request.param == "a pool":
        monkeypatch.setattr(team, "parallel_region", lambda: None)
    elif team.parallel_region() is None:
        pytest.skip("torch has no GNU OpenMP here")
    return request.param == "a pool"


def _in_child(arguments, queue):
    with torch.no_grad():
        y, state = scan(*arguments, **options())
    own = any(thread.name.startswith("muse-adapter") for thread in threading.enumerate())
    queue.put((y.numpy().tobytes(), state.numpy().tobytes(), own))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork(helpers, threads):
    """The child has none of the parent's threads, and makes its own."""
    threads(3)
    arguments = draw(torch.float32, *SHARED)
    with torch.no_grad():
        expected = scan(*arguments, **options())
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_in_child, args=(arguments, queue))
    child.start()
    try:
        got = queue.get(timeout=20)
        child.join(60)
        assert child.exitcode == 0
    finally:
        child.kill()
    assert got == (*(tensor.numpy().tobytes() for tensor in expected), helpers)
    again = scan(*arguments, **options())
    assert torch.equal(again[0], expected[0])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_no_openmp_in_a_child_where_it_would_wait(monkeypatch):
    """Of a process whose OpenMP cannot let its threads end."""

    def in_child():
        child = os.fork()
        if child == 0:
            os._exit(int(team.parallel_region() is not None))
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    here = int(team.parallel_region() is not None)
    assert in_child() == here
    original = team._from_torchs_openmp
    monkeypatch.setattr(
        team, "_from_torchs_openmp", lambda name: original(name) if "GOMP" in name else None
    )
    monkeypatch.setattr(team, "_ended", team._ended)
    assert in_child() == 0 and int(team.parallel_region() is not None) == here


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_after_a_fork_before_the_first_call(run_python):
    """Torch's threads were there, nothing watched the fork: the child would wait for them.

    The package is imported in the child, then before the fork.
    """
    done = run_python(
        """
        import os, signal, torch

        def run_in_child():
            child = os.fork()
            if child == 0:
                signal.alarm(60)
                import ctypes
                from muse_adapter.ops.numba_cpu.parallel import run_parallel
                calls = []
                function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(calls.append)
                run_parallel(ctypes.cast(function, ctypes.c_void_p).value, 0, 3)
                os._exit(0 if calls else 1)
            return os.waitpid(child, 0)[1]

        torch.set_num_threads(3)
        torch.randn(1 << 20).exp()
        imported_in_child = run_in_child()
        import muse_adapter.ops.numba_cpu.kernel
        assert (imported_in_child, run_in_child()) == (0, 0)
        """
    )
    assert done.returncode == 0, done.stderr


def test_the_same_bits_on_any_threads(helpers, threads):
    threads(1)
    expected = shared_work()
    threads(2)
    identical(shared_work(), expected)


class Called:
    """A C function that notes which threads call it; not before all of them have come."""

    def __init__(self, expected):
        self.threads, self.expected = [], expected
        self.function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(self.call)
        self.address = ctypes.cast(self.function, ctypes.c_void_p).value

    def call(self, memory):
        self.threads.append(str(threading.get_native_id()))
        for _ in range(1000):
            if len(self.threads) == self.expected:
                break
            time.sleep(0.01)


def test_as_many_calls_as_threads(helpers, threads):
    threads(3)
    called = Called(3)
    run_parallel(called.address, 0, 3)
    assert len(set(called.threads)) == 3


def test_a_pool_that_cannot_have_all_its_threads(monkeypatch):
    """Those that there are do the work, and none of it is done after the end."""
    begun = []
    start = threading.Thread.start

    def starve(thread):
        if len(begun) == 2:
            raise RuntimeError("can't start new thread")
        begun.append(thread)
        start(thread)

    monkeypatch.setattr(pool, "_pools", {})
    monkeypatch.setattr(threading.Thread, "start", starve)
    calls, ended = [], False

    def work():
        assert not ended
        calls.append(threading.get_ident())
        time.sleep(0.2)

    pool.run(work, 5)
    ended = True
    before = list(calls)
    assert 1 <= len(set(calls)) <= 3
    pool._pools[os.getpid()].executor.shutdown()
    assert calls == before


@pytest.mark.skipif(
    team.parallel_region() is None, reason="torch has no OpenMP of the GNU kind here"
)
def test_work_is_done_by_threads_that_torch_has(threads):
    threads(3)
    torch.randn(1 << 20).exp()
    before = set(os.listdir("/proc/self/task"))
    called = Called(3)
    run_parallel(called.address, 0, 3)
    assert set(called.threads) <= before


def test_beside_a_thread_that_computes_in_python(helpers, threads):
    """It holds the interpreter's lock most of the time: the same bits."""
    threads(3)
    expected = shared_work()
    stop = threading.Event()

    def compute():
        while not stop.is_set():
            sum(range(1000))

    busy = threading.Thread(target=compute)
    busy.start()
    try:
        identical(shared_work(), expected)
    finally:
        stop.set()
        busy.join()


@pytest.mark.slow
def test_beside_a_busy_process(threads, run_beside, monkeypatch):
    """Which has as many threads as there are cores: the result, and no starving."""
    threads(2)
    # Torch fills memory on OpenMP's threads, which starve.
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    # On a fast machine shorter work is over before the other process has had its turn.
    shape = (3, 2800, 80, 16)
    expected = shared_work(shape=shape)
    ready = run_beside("""
        import torch
        a = torch.randn(512, 512)
        torch.set_num_threads(max(2, torch.get_num_threads()))
        a @ a
        print("ready", flush=True)
        while True:
            a @ a
    """)
    assert ready == "ready\n"
    times = {1: [], 2: []}
    for _ in range(5):
        for count, taken in times.items():
            threads(count)
            begin = time.perf_counter()
            identical(shared_work(shape=shape), expected)
            taken.append(time.perf_counter() - begin)
    # A second thread that has to wait for its turn may cost time, but not many times the work.
    assert statistics.median(times[2]) < 4 * statistics.median(times[1])
