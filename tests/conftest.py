"""What all tests share: golden files, tolerances, backends, and a repeatable environment.

Fixtures
    golden("head_scale_wise")   one golden file (see `Golden`)
    golden_head, golden_mixer, golden_scan   parametrised over every file of that kind
    tolerance(got, stored)      the bound for max|got - stored| / max|stored|, from the table below
    backend                     parametrised over the names of `muse_adapter.ops.backends()`;
                                skipped, with the reason, where one cannot run
    nan_memory                  memory that is allocated but not written holds NaN
    run_python                  runs code in a fresh interpreter that sees this checkout
    threads                     sets the number of torch's threads, for this test
    torch_scan                  runs scans on the `torch` backend, for this file
    two_processes               runs code in two interpreters, a group of torch.distributed
"""

from __future__ import annotations

import json
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
from hypothesis import HealthCheck, settings

from tests.support.backbone_libraries import make_importable

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"

# max|got - stored| / max|stored|, by the type of the run and the type of the stored tensor.
TOLERANCE = {
    # The same formulas in the same precision: only the order of sums differs.
    (torch.float64, torch.float64): 1e-9,
    # Stored values were rounded to 24 bits: half a unit in the last place is 6e-8 of each value.
    (torch.float64, torch.float32): 2e-7,
    # About a hundred roundings of 6e-8; the official code itself is 1e-6 from its float64 values.
    (torch.float32, torch.float64): 1e-5,
    (torch.float32, torch.float32): 1e-5,
}

# Workers of pytest-xdist share the cores, so each keeps to one thread. The variables reach numba,
# which is imported later, and the processes that tests start.
THREADS = 1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, os.cpu_count() or 1)
torch.set_num_threads(THREADS)
os.environ.setdefault("OMP_NUM_THREADS", str(THREADS))
os.environ.setdefault("NUMBA_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
# Without a GPU, Triton's kernels run in its interpreter.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
TORCHVISION = make_importable()
# A test never reaches for the network: names of hub models must fail at once.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

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


def tolerance_of(got: torch.Tensor, stored: torch.Tensor) -> float:
    """The bound of the table for a tensor of ours against a stored one."""
    return TOLERANCE[got.dtype, stored.dtype]


def parse_slice(text: str) -> tuple[slice, ...]:
    """Turns what stands in brackets behind a golden name, such as ':, ::8', into slices."""
    axes = []
    for axis in text.split(","):
        parts = [int(part) if part.strip() else None for part in axis.split(":")]
        axes.append(slice(*parts))
    return tuple(axes)


class Golden:
    """One golden file: `meta` (strings), `config` (parsed), tensors by name.

    Args:
        name: File name without its ending.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        safetensors = pytest.importorskip("safetensors", reason="golden files need safetensors")
        self._tensors: dict[str, torch.Tensor] = {}
        self._slices: dict[str, str] = {}
        with safetensors.safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
            self.meta: dict[str, str] = dict(file.metadata())
            for stored_name in file.keys():  # noqa: SIM118 - a safe_open is not a dict
                key, _, cut = stored_name.partition("[")
                self._tensors[key] = file.get_tensor(stored_name)
                if cut:
                    self._slices[key] = cut.rstrip("]")

    def __repr__(self) -> str:
        return f"Golden({self.name!r})"

    @property
    def kind(self) -> str:
        """'head', 'bimamba', 'mamba', 'selective_scan' or 'bertadam'."""
        return self.meta["kind"]

    def number(self, key: str) -> int:
        """An integer of the metadata, such as 'layers'."""
        return int(self.meta[key])

    @property
    def scales(self) -> tuple[float, ...]:
        """The scales of a head file."""
        return tuple(json.loads(self.meta["scales"]))

    @property
    def float32_error(self) -> dict[str, float]:
        """How far the official code in float32 is from its own float64 values."""
        return json.loads(self.meta["float32_error"])

    def keys(self, prefix: str = "") -> list[str]:
        """Names that start with `prefix`, without the slice some carry."""
        return sorted(key for key in self._tensors if key.startswith(prefix))

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def stored(self, key: str) -> torch.Tensor:
        """The tensor as it is stored: its own type, and cut where the file cuts it."""
        return self._tensors[key]

    def tensor(self, key: str, dtype: torch.dtype = torch.float64) -> torch.Tensor:
        """A fresh copy of an input, cotangent or weight; integers keep their type."""
        if key in self._slices:
            raise KeyError(f"{key} is stored cut ([{self._slices[key]}]): compare, do not read")
        value = self._tensors[key]
        return value.to(dtype, copy=True) if value.is_floating_point() else value.clone()

    def inputs(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        """All `in.*` by what stands behind the prefix."""
        return {key[3:]: self.tensor(key, dtype) for key in self.keys("in.")}

    def weights(self, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
        """All weights under their official names."""
        results = ("in.", "cot.", "out.", "grad", "after.", "start.")
        return {k: self.tensor(k, dtype) for k in self.keys() if not k.startswith(results)}

    def cut(self, key: str, value: torch.Tensor) -> torch.Tensor:
        """Cuts a tensor of ours as the file cuts the one of that name."""
        if key not in self._slices:
            return value
        axes = parse_slice(self._slices[key])
        # Weight gradients are cut along the flattened tensor, results along their axes.
        whole = value.flatten() if len(axes) == 1 else value
        return whole[axes]

    def error(self, key: str, got: torch.Tensor) -> float:
        """max|got - stored| / max|stored|, over what the file holds.

        Args:
            key: Name without a slice, e.g. "out.layers.0".
            got: The whole tensor, in the type of the run.
        """
        stored = self._tensors[key]
        part = self.cut(key, got.detach())
        assert part.shape == stored.shape, (
            f"{self.name}: {key} must have shape {tuple(stored.shape)}, got {tuple(part.shape)}"
        )
        difference = (part.double() - stored.double()).abs().max().item()
        scale = stored.double().abs().max().item()
        return difference / scale if scale else difference

    def bound(self, key: str, got: torch.Tensor) -> float:
        """The tolerance for that tensor: the table; wider for weight gradients in float32 only."""
        limit = tolerance_of(got, self._tensors[key])
        weight_gradient = key.startswith("grad.") and not key.startswith("grad.in.")
        if weight_gradient and got.dtype == torch.float32 and "float32_error" in self.meta:
            # The official code is no nearer to its own float64 values: long sums cancel.
            limit = max(limit, 2 * self.float32_error.get("grad_weight_rel_max", 0.0))
        return limit

    def check(self, key: str, got: torch.Tensor) -> None:
        """Asserts that our tensor agrees with the stored one of that name."""
        error, bound = self.error(key, got), self.bound(key, got)
        # "not <=" also catches NaN.
        assert error <= bound, f"{self.name}: {key} is off by {error:.2e}, allowed {bound:.0e}"


def golden_names(*prefixes: str) -> list[str]:
    """Names of the golden files that start with one of the prefixes."""
    names = sorted(path.stem for path in GOLDEN.glob("*.safetensors"))
    return [name for name in names if name.startswith(prefixes)]


KINDS = {
    "golden_head": golden_names("head_"),
    "golden_mixer": golden_names("bimamba_", "mamba_"),
    "golden_scan": golden_names("selective_scan_"),
}


def backend_names() -> list[str]:
    """All backends there are, whether they run here or not."""
    from muse_adapter import ops

    return list(ops.backends())


def parametrised_by_hand(metafunc: pytest.Metafunc) -> set[str]:
    """Argument names that the test's own parametrize marks give."""
    names: set[str] = set()
    for mark in metafunc.definition.iter_markers("parametrize"):
        given = mark.args[0]
        parts = given.split(",") if isinstance(given, str) else given
        names.update(part.strip() for part in parts)
    return names


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrises the fixtures that stand for a list of files or backends."""
    for fixture, names in KINDS.items():
        if fixture in metafunc.fixturenames:
            metafunc.parametrize(fixture, names, indirect=True)
    if "backend" in metafunc.fixturenames and "backend" not in parametrised_by_hand(metafunc):
        metafunc.parametrize("backend", backend_names(), indirect=True)


@pytest.fixture
def golden() -> Callable[[str], Golden]:
    """Reads a golden file by name: golden("head_scale_wise")."""
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
    from muse_adapter import ops

    status = ops.backends("cpu")[request.param]
    if request.param == "triton":
        pytest.skip("the interpreter is slow: test_triton.py has the same cases, small")
    if not status.available:
        pytest.skip(f"backend {request.param}: {status.reason}")
    return request.param


@pytest.fixture
def tolerance() -> Callable[[torch.Tensor, torch.Tensor], float]:
    """The bound for a tensor of ours against a stored one: tolerance(got, stored)."""
    return tolerance_of


@pytest.fixture
def nan_memory() -> Iterator[None]:
    """torch.empty and its kin give NaN, so that an output nobody wrote cannot pass by luck."""
    before = torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.use_deterministic_algorithms(before)


@pytest.fixture(autouse=True)
def same_seed() -> None:
    """Every test starts from the same random state, alone or among others."""
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def torch_scan() -> Iterator[None]:
    """Runs scans on the `torch` backend, which compiles nothing, for this file."""
    from muse_adapter.ops import use_backend

    with use_backend("torch"):
        yield


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs code in a fresh interpreter: run_python("import torch", "argument", X="1").

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
    """Sets the number of torch's threads, for this test."""
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


@pytest.fixture
def two_processes(tmp_path: Path, run_python: Callable[..., Any]) -> Callable[..., None]:
    """Runs code in two processes of one gloo group, and asserts that both end well.

    The code finds its `rank` and the `arguments`, and may import `tests.support`.
    """

    def run(code: str, *arguments: str, **variables: str) -> None:
        code = f"{GROUP}{textwrap.dedent(code)}\ndistributed.destroy_process_group()"
        store = str(tmp_path / "store")

        def start(rank: int) -> subprocess.CompletedProcess[str]:
            return run_python(code, str(rank), store, *arguments, **variables)

        with ThreadPoolExecutor(2) as pool:
            for done in pool.map(start, range(2)):
                assert done.returncode == 0, done.stderr

    return run
