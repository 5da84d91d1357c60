"""The triton kernels, compiled for GPUs of two makers: registers, and no sum left to chance."""

from __future__ import annotations

import json
import re

import pytest

# Without a GPU kernels can still be compiled for one. In a process of its own, since here they are
# the interpreter's.
COMPILE = """
    import json, sys
    from benchmarks.gpu import aot

    print(json.dumps([
        {n: aot.usage(aot.compile_kernel(module, n, target)) for module, n in aot.kernels()}
        for target in json.loads(sys.argv[1])
    ]))
"""


# H100, A100, B200 and MI300.
TARGETS = [("cuda", 90, 32), ("cuda", 80, 32), ("cuda", 100, 32), ("hip", "gfx942", 64)]


@pytest.mark.slow(seconds=50)
def test_registers_and_spills(run_python, tmp_path):
    """Compiled for GPUs of two makers: nothing spills, and no sum is left to chance."""
    pytest.importorskip("triton", "3.6", reason="the compiler's interface of triton 3.6")
    given = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = run_python(COMPILE, json.dumps(TARGETS), **given)
    assert done.returncode == 0, done.stderr
    kernels = json.loads(re.search(r"^\[.*\]$", done.stdout, re.MULTILINE)[0])
    for target, found in zip(TARGETS, kernels, strict=True):
        print(target, json.dumps(found, indent=1))
        assert len(found) == 9
        for name, usage in found.items():
            assert usage["STACK"] == usage["LOCAL"] == 0, f"{name} spills: {usage}"
            assert 0 < usage["REG"] <= 255 and not usage["atomics"], name
        # Programs of the forward kernels that are to fit on a scheduler: 3; of the backward
        # kernel: 2.
        assert all(found[name]["REG"] <= 168 for name in ("summaries", "carries", "outputs"))
