"""No operator, and no exported program, reads or writes outside of its tensors.

Every case runs in memory that ends, or begins, at a page that cannot be touched, in a process of
its own: a signal is a failure that names the case.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from muse_adapter.ops.numba_cpu import NUMBA
from muse_adapter.ops.triton_gpu import TRITON
from tests.support.guard_pages import PAGE, SIDES, guarded

if not sys.platform.startswith("linux"):
    pytest.skip("guard pages are made by Linux's mmap and mprotect", allow_module_level=True)
if NUMBA.unavailable() is not None:
    pytest.skip(f"backend numba: {NUMBA.unavailable()}", allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.operator_fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def last_case(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip().rpartition("\n")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count"), [("operators", 210), ("programs", 60), ("triton", 32)])
def test_random_calls_stay_inside(what, count):
    if what == "triton" and (reason := TRITON.unavailable(torch.device("cpu"))) is not None:
        pytest.skip(f"backend triton on CPU: {reason}")
    done = fuzz("0", str(count), what)
    assert done.returncode == 0, f"{last_case(done)}\n{done.stderr}"
    accepted, refused = map(int, re.findall(r"\d+", last_case(done)))
    assert accepted + refused == count
    assert accepted > count // 8 and refused > count // 8, "one of the two was hardly tried"


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kernel", "checks"])
def test_a_planted_fault_is_found(fault):
    """Working memory that is one number short, or no checks at all."""
    done = fuzz("0", "60", "operators", fault)
    assert done.returncode == -signal.SIGSEGV, done.stderr
    assert "scan" in last_case(done)


def end_of_a_reader(place: int) -> int:
    """Read a byte in a child process; what it ended with."""
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        os._exit(ctypes.c_ubyte.from_address(place).value & 0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("side", SIDES)
def test_memory_is_guarded(side):
    """Reading beside a tensor ends the process, and reading the tensor does not."""
    tensor = guarded(torch.arange(7, dtype=torch.bfloat16), side)
    first = tensor.data_ptr()
    last = first + tensor.nbytes - 1
    assert end_of_a_reader(first) == 0 and end_of_a_reader(last) == 0
    beside = last + 1 if side == "behind" else first - 1
    assert end_of_a_reader(beside) == -signal.SIGSEGV


@pytest.mark.parametrize("side", SIDES)
def test_a_guarded_copy_is_equal(side):
    dense = torch.randn(3, 5, 2)
    for tensor in (dense, dense.mT, dense[:, 1:4, ::2], dense[:1].expand(4, 5, 2), dense[0, 0, 0]):
        copy = guarded(tensor, side)
        assert torch.equal(copy, tensor) and copy.stride() == tensor.stride()
        end = copy.data_ptr() + copy.untyped_storage().nbytes()
        assert (end if side == "behind" else copy.data_ptr()) % PAGE == 0
    gaps = guarded(dense[:, :, ::2], side).as_strided((3, 4), (10, 2), 1)
    assert gaps.isnan().all(), "what lies between the elements must be NaN"
