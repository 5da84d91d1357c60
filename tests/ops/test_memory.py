"""No operator, and no exported program, reads or writes outside of its tensors.

Every case runs in memory that ends, or begins, at a page that cannot be touched, in a process of
its own: a signal is a failure that names the case.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys

import pytest
import torch

from muse_adapter.ops.numba_cpu import NUMBA
from tests.conftest import ROOT
from tests.support.guard_pages import PAGE, SIDES, guarded

if not sys.platform.startswith("linux"):
    pytest.skip("guard pages are made by Linux's mmap and mprotect", allow_module_level=True)
if NUMBA.unavailable() is not None:
    pytest.skip(f"backend numba: {NUMBA.unavailable()}", allow_module_level=True)


def fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.support.operator_fuzz", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def last_case(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout.strip().rpartition("\n")[2]


@pytest.mark.slow
@pytest.mark.parametrize(("what", "count"), [("operators", 280), ("programs", 80)])
def test_random_calls_stay_inside(what, count):
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


@pytest.mark.parametrize("side", SIDES)
def test_memory_is_guarded(run_python, side):
    """Reading beside a tensor ends the process, and reading the tensor does not."""
    code = """
        import ctypes, sys
        import torch
        from tests.support.guard_pages import guarded

        side, beside = sys.argv[1], int(sys.argv[2])
        tensor = guarded(torch.arange(7, dtype=torch.bfloat16), side)
        first = tensor.data_ptr()
        last = first + tensor.nbytes - 1
        place = (last if side == "behind" else first) + beside
        print(ctypes.c_char.from_address(place).value is not None)
    """
    outside = "1" if side == "behind" else "-1"
    assert run_python(code, side, "0").stdout == "True\n"
    assert run_python(code, side, outside).returncode == -signal.SIGSEGV


@pytest.mark.parametrize("side", SIDES)
def test_a_guarded_copy_is_equal(side):
    dense = torch.randn(3, 5, 2)
    for tensor in (dense, dense.mT, dense[:, 1:4, ::2], dense[:1].expand(4, 5, 2), dense[0, 0, 0]):
        copy = guarded(tensor, side)
        assert torch.equal(copy, tensor) and copy.stride() == tensor.stride()
        inner = (copy.data_ptr() + copy.untyped_storage().nbytes()) % PAGE
        assert (inner if side == "behind" else copy.data_ptr() % PAGE) == 0
    gaps = guarded(dense[:, :, ::2], side).as_strided((3, 5, 1), (10, 2, 2), 1)[:, :4]
    assert gaps.isnan().all(), "what lies between the elements must be NaN"
