"""Environment and fixtures of all tests.

Fixtures
    golden("head_scale_wise")   one golden file (see `tests.support.golden`)
    golden_head, golden_mixer, golden_scan   parametrised over every file of that kind
    backend                     parametrised over the backends that run on the CPU
    nan_memory                  allocated memory is filled with NaN
    run_python                  runs code in a new interpreter that imports this checkout
    threads                     sets the number of torch's threads, for one test
    torch_scan                  runs scans on the `torch` backend, for one file
    two_processes               runs code in two interpreters, a group of torch.distributed
"""

from __future__ import annotations

import gc
import importlib.util
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.backbone_libraries import make_importable
from tests.support.golden import Golden, golden_names

ROOT = Path(__file__).resolve().parent.parent

# What imports make lives as long as the process. To search it for garbage took a fifth of the time
# in which all tests are collected, and would slow down every later search.
gc.disable()

# One thread for the small tensors of the tests: workers of pytest-xdist share the cores. The
# variables reach numba, which is imported later, and the processes that tests start.
torch.set_num_threads(int(os.environ.setdefault("OMP_NUM_THREADS", "1")))
os.environ.setdefault("NUMBA_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
# Without a GPU, Triton's kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
TORCHVISION = make_importable()  # lives as long as the process
# Tests never use the network: names of hub models must fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# A machine with a GPU may have nothing but pytest; tests of properties are skipped or fail there.
if importlib.util.find_spec("hypothesis"):
    from hypothesis import HealthCheck, settings

    # No deadline: the first call of a backend may compile. In CI the examples are always the same.
    settings.register_profile(
        "default",
        deadline=None,
        max_examples=25,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    settings.register_profile(
        "ci", settings.get_profile("default"), derandomize=True, database=None, print_blob=True
    )
    settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slow tests, the longest first: at the end no process waits for one alone."""
    items.sort(key=seconds, reverse=True)


def seconds(item: pytest.Item) -> float:
    """Return about how long a test takes, if it is a slow one: @pytest.mark.slow(seconds=30)."""
    mark = item.get_closest_marker("slow")
    return mark.kwargs.get("seconds", 10.0) if mark else 0.0


def pytest_collection_finish() -> None:
    """Search for garbage from now on, in what the tests make alone."""
    gc.freeze()
    gc.enable()


def pytest_report_header() -> str:
    """Show which backends are tested on the CPU, and why the others are not."""
    from tests.support.backends import cpu_backends, left_out

    others = [f"not {name} ({reason})" for name, reason in left_out().items()]
    return f"backends: {'; '.join(cpu_backends() + others)}"


def backends() -> list[str]:
    """List the backends; imported late, since numba reads the environment set above."""
    from tests.support.backends import cpu_backends

    return cpu_backends()


FIXTURES = {
    "golden_head": lambda: golden_names("head_"),
    "golden_mixer": lambda: golden_names("bimamba_", "mamba_"),
    "golden_scan": lambda: golden_names("selective_scan_"),
    "backend": backends,
}


def parametrised_by_mark(metafunc: pytest.Metafunc) -> set[str]:
    """List the arguments that the test's own parametrize marks give."""
    names: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        given = mark.args[0]
        parts = given.split(",") if isinstance(given, str) else given
        names.update(part.strip() for part in parts)
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrise the fixtures that stand for a list of files or backends."""
    by_mark = parametrised_by_mark(metafunc)
    for fixture, names in FIXTURES.items():
        if fixture in metafunc.fixturenames and fixture not in by_mark:
            metafunc.parametrize(fixture, names(), indirect=True)


@pytest.fixture(scope="session", autouse=True)
def fast_interpreter() -> None:
    """Spare Triton's interpreter what it repeats, where kernels run in it."""
    from muse_adapter.ops.triton_gpu import TRITON

    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if interpreted and TRITON.unavailable(torch.device("cpu")) is None:
        from tests.support.triton_interpreter import shorten_interpreter

        shorten_interpreter()


@pytest.fixture(scope="session", autouse=True)
def shared_kernels(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Share the compilation of the CPU kernels among the workers of pytest-xdist."""
    from muse_adapter.ops.numba_cpu import NUMBA

    if "PYTEST_XDIST_WORKER" in os.environ and NUMBA.unavailable() is None:
        from tests.support.shared_kernels import compile_with_other_workers

        claims = tmp_path_factory.getbasetemp().parent / "kernels"  # of this run
        claims.mkdir(exist_ok=True)
        compile_with_other_workers(claims)


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Read a golden file by name: golden("head_scale_wise")."""
    return Golden


@pytest.fixture
def golden_head(request: pytest.FixtureRequest) -> Golden:
    """Every golden file of a whole head."""
    return Golden(request.param)


@pytest.fixture
def golden_mixer(request: pytest.FixtureRequest) -> Golden:
    """Every golden file of a mixer (kinds bimamba and mamba)."""
    return Golden(request.param)


@pytest.fixture
def golden_scan(request: pytest.FixtureRequest) -> Golden:
    """Every golden file of a selective scan."""
    return Golden(request.param)


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Name of a backend of the scan that runs on the CPU."""
    return request.param


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """Fill the results of torch.empty and the like with NaN: an unwritten output cannot pass."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def same_seed() -> None:
    """Start every test from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def torch_scan() -> Iterator[None]:
    """Run scans on the `torch` backend, which compiles nothing, for this file."""
    from muse_adapter.ops import use_backend

    with use_backend("torch"):
        yield


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run code in a new interpreter: run_python("import torch", "argument", X="1").

    Keyword arguments become environment variables. Standard output and error are captured.
    """

    def run(code: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
        return subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            env=environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=300,
        )

    return run


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Set the number of torch's threads, for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


GROUP = """
import sys
import torch
from torch import distributed

rank, store, *arguments = sys.argv[1:]
rank = int(rank)
torch.set_num_threads(1)
distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
"""


@pytest.fixture(scope="session")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, run_python: Callable[..., Any]
) -> Callable[..., None]:
    """Run code in two processes of one gloo group, and assert that both succeed.

    The code may use `rank`, `arguments` and `tests.support`.
    """

    def run(code: str, *arguments: str, **variables: str) -> None:
        code = f"{GROUP}{textwrap.dedent(code)}\ndistributed.destroy_process_group()"
        store = str(tmp_path_factory.mktemp("group") / "store")

        def start(rank: int) -> subprocess.CompletedProcess[str]:
            return run_python(code, str(rank), store, *arguments, **variables)

        with ThreadPoolExecutor(2) as pool:
            for done in pool.map(start, range(2)):
                assert done.returncode == 0, done.stderr

    return run
