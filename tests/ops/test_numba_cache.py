"""Kernels that are kept on disk: damage is named and mended, and the call goes on."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch

from muse_adapter.ops.numba_cpu import NUMBA as backend

if backend.unavailable() is not None:
    pytest.skip(f"backend numba: {backend.unavailable()}", allow_module_level=True)

from muse_adapter.ops.numba_cpu import kernel_cache
from tests.support.tiny_kernel import tiny_kernel, works

# Damages files one after the other; a crash ends the process, and the last line names the damage.
DAMAGE = """
    import random, sys, warnings
    from pathlib import Path
    from tests.support.tiny_kernel import works

    folder, flips = Path(sys.argv[1]), int(sys.argv[2])
    assert works()
    (index,), (code,) = folder.rglob("*.nbi"), folder.rglob("*.nbc")

    def flipped(content, place):
        return content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :]

    draw = random.Random(0)
    for file in (index, code):
        whole = file.read_bytes()
        damages = {
            "empty": b"", "cut": whole[:-10], "half": whole[: len(whole) // 2],
            "garbage": draw.randbytes(len(whole)), "another pickle": b"\\x80\\x04K\\x01.",
        }
        for _ in range(flips):
            place = draw.randrange(len(whole))
            damages[f"bit {place}"] = flipped(whole, place)
        for name, content in damages.items():
            print(file.suffix, name, end=" ", flush=True)
            file.write_bytes(content)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                assert works()
            assert all(str(file.parent) in str(w.message) for w in caught), caught[0].message
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                assert works(), "the kernel was not written again"
            print(len(caught), flush=True)
            file.write_bytes(whole)
"""


def damage(run_python, folder, flips):
    done = run_python(DAMAGE, str(folder), str(flips), NUMBA_CACHE_DIR=str(folder))
    assert done.returncode == 0, done.stdout[-200:] + done.stderr
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return {name: int(count) for name, count in lines}


@pytest.mark.slow
def test_damage_is_named_and_mended(run_python, tmp_path):
    """No flipped bit is run, either."""
    warned = damage(run_python, tmp_path, 40)
    flips = {name: count for name, count in warned.items() if " bit " in name}
    others = {name: count for name, count in warned.items() if name not in flips}
    assert len(others) == 10
    # Another pickle in the place of numba's version is an index of another version, no damage.
    assert {name for name, count in others.items() if count != 1} == {".nbi another pickle"}
    in_code = [count for name, count in flips.items() if name.startswith(".nbc")]
    assert sum(in_code) > 35, "a bit of machine code was flipped, and nothing was said"


@pytest.fixture
def cache_folder(monkeypatch, tmp_path):
    import numba

    folder = tmp_path / "cache"
    folder.mkdir()
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(folder))
    kernel_cache._warn_uncached.cache_clear()
    yield folder
    kernel_cache._warn_uncached.cache_clear()


def compile_two():
    kernel = tiny_kernel()
    for dtype in (torch.float32, torch.float64):
        # It holds its memory until the kernel has written to it.
        number = torch.zeros(1, dtype=dtype)
        kernel.run(dtype, 1, number.data_ptr())


def test_compiling_is_announced_once(cache_folder, caplog):
    kernel_cache._announce.cache_clear()
    compile_two()
    assert [record.getMessage()[:25] for record in caplog.records] == ["compiling the CPU kernels"]
    kernel_cache._announce.cache_clear()
    caplog.clear()
    assert works()  # from the disk
    assert not caplog.records


def test_an_index_of_another_version(cache_folder, monkeypatch):
    """After an upgrade of numba kernels are compiled again, which is nothing to warn of."""
    import numba

    with monkeypatch.context() as context:
        context.setattr(numba, "__version__", "0.1")
        assert works()
    (index,) = cache_folder.rglob("*.nbi")
    before = index.read_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert works()
    assert index.read_bytes() != before


def test_files_of_two_kernels_are_not_exchanged(cache_folder):
    """Two processes that write at once may give one number to two entries."""
    compile_two()
    first, second = sorted(cache_folder.rglob("*.nbc"))
    shutil.copy(second, first)
    with pytest.warns(UserWarning, match="it is of another kernel"):
        assert works()


def no_folder(*_):
    raise RuntimeError("cannot cache function: no locator available")


def disk_full(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("owner", "method", "error"),
    [
        (kernel_cache.FunctionCache, "__init__", no_folder),
        (kernel_cache._CheckedFiles, "save", disk_full),
        (kernel_cache._CheckedFiles, "_save_index", disk_full),
    ],
    ids=["no folder", "disk full", "index not written"],
)
def test_a_cache_that_cannot_be_written(cache_folder, monkeypatch, owner, method, error):
    """The kernel is compiled every time, with one warning a process."""
    monkeypatch.setattr(owner, method, error)
    with pytest.warns(UserWarning, match="cannot be kept on disk .*NUMBA_CACHE_DIR") as caught:
        assert works() and works()
    assert len(caught) == 1
