"""The numba backend where its cache cannot be kept, has become stale, or numba is missing."""

from __future__ import annotations

import inspect
import shutil
import sys
from pathlib import Path

import pytest
import torch

from muse_adapter.ops import numba_cpu
from muse_adapter.ops.numba_cpu import NUMBA as backend

if backend.unavailable() is not None:
    pytest.skip(f"backend numba: {backend.unavailable()}", allow_module_level=True)

pytestmark = pytest.mark.usefixtures("nan_memory")


@pytest.mark.slow
def test_runs_where_nothing_can_be_written(run_python, tmp_path):
    """No cache beside the code, none in a home folder: it compiles every time."""
    package = tmp_path / "site" / "muse_adapter" / "ops" / "numba_cpu"
    package.mkdir(parents=True)
    for file in Path(inspect.getfile(numba_cpu)).parent.glob("*.py"):
        shutil.copy(file, package)
    for file in Path(inspect.getfile(numba_cpu)).parents[1].glob("*.py"):
        shutil.copy(file, package.parent)
    # Root may write in a read-only folder, but not in a file as if it were one.
    (package / "__pycache__").write_text("")
    (package.parent / "__init__.py").write_text("")
    (package.parent.parent / "__init__.py").touch()
    code = """
        import os, sys
        os.environ.pop("NUMBA_CACHE_DIR", None)
        sys.path.insert(0, sys.argv[1])
        import torch
        from muse_adapter.ops import numba_cpu
        from muse_adapter.ops.inputs import ScanInputs
        assert numba_cpu.__file__.startswith(sys.argv[1]), numba_cpu.__file__
        assert "numba" not in sys.modules, "numba is imported before its first use"
        ones = torch.ones(1, 2, 1)
        gain = ones[..., None]
        y, _ = numba_cpu.NUMBA.scan(ScanInputs(ones, ones, -ones[0, :1], gain, gain))
        print(*y.flatten().tolist())
    """
    nowhere = {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null/cache", "USERPROFILE": "/dev/null"}
    done = run_python(code, str(tmp_path / "site"), **nowhere)
    assert done.returncode == 0, done.stderr
    first, second = map(float, done.stdout.split())
    assert first == 1 and abs(second - 1.36787944) < 1e-6
    assert done.stderr.count("Set NUMBA_CACHE_DIR to a folder that can be written") == 1


def test_a_kernel_is_stale_when_another_file_changes(monkeypatch, tmp_path):
    from muse_adapter.ops.numba_cpu import kernel

    def name():
        def same(memory) -> None:
            pass

        return kernel.Kernel(same).function.__qualname__

    folder = tmp_path / "numba_cpu"
    shutil.copytree(Path(kernel.__file__).parent, folder, ignore=shutil.ignore_patterns("__*__"))
    before = name()
    monkeypatch.setattr(kernel, "__file__", str(folder / "kernel.py"))
    copied = name()
    (folder / "simd.py").write_text("# changed")
    changed = name()
    assert changed != copied
    monkeypatch.setattr(kernel, "NEGLIGIBLE", {})
    assert name() != changed
    assert before.rpartition("_")[0] == copied.rpartition("_")[0]


def test_says_why_it_cannot_run(monkeypatch):
    assert backend.unavailable() is None
    assert backend.unavailable(torch.device("cpu")) is None
    assert "CPU tensors only, got cuda:0" in backend.unavailable(torch.device("cuda", 0))
    with monkeypatch.context() as context:
        context.setenv("NUMBA_DISABLE_JIT", "1")
        assert "unset NUMBA_DISABLE_JIT" in backend.unavailable()
    with monkeypatch.context() as context:
        context.setitem(sys.modules, "muse_adapter.ops.numba_cpu.function", None)
        numba_cpu._load_error.cache_clear()
        assert "numba does not load" in backend.unavailable()
    numba_cpu._load_error.cache_clear()
    monkeypatch.setitem(sys.modules, "numba", None)
    assert backend.unavailable() == "numba is not installed: pip install 'muse-adapter[cpu]'"
