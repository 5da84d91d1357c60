"""Launches of compiled kernels, without a GPU: what Triton would launch, the direct launch does."""

from __future__ import annotations

import json
import re
import textwrap

import pytest

pytest.importorskip("triton", "3.6", reason="the interface of the driver of triton 3.6")

# In a process of its own, since here the kernels are the interpreter's. The driver compiles for an
# H100 and notes launches. Each call is made with the direct launch, then as Triton does it.
RECORD = """
    import json, torch, triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from muse_adapter.ops.triton_gpu import launch as module

    launches = []

    class Launcher:
        def __init__(self, src, metadata):
            self.src = src

        def __call__(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
            given = [a.data_ptr() if torch.is_tensor(a) else str(a) for a in arguments]
            types = {**self.src.signature}, sorted(map(str, self.src.attrs))
            launches.append([[x, y, z], stream, str(types), [str(a) for a in given]])

    class Utils:
        def load_binary(self, *_):
            return 1, 2, 32, 0, 1024

        def get_device_properties(self, device):
            return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}

    class Driver:
        utils, launcher_cls, device = Utils(), Launcher, 0

        def get_current_target(self):
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self):
            return self.device

        def get_current_stream(self, device):
            return 7 + device

    triton.runtime.driver.set_active(Driver())

    @triton.jit(do_not_specialize=["L"])
    def copy(x, y, L, time, E: tl.constexpr, TYPE: tl.constexpr):
        e = tl.arange(0, E)
        tl.store(y + e * time, tl.load(x + e + L).to(TYPE))

    memory = torch.zeros(64)
    half = torch.zeros(64, dtype=torch.float16)
    tensors = (memory, half), (memory[1:], half), (memory, half[4:]), (half, half)
    integers = (16, 16), (1, 16), (5, 1), (5, 3)
    first, second = {"E": 8, "TYPE": tl.float32}, {"TYPE": tl.float16, "E": 16}
    cases = [(*xy, *numbers, first) for xy in tensors for numbers in integers]
    cases += [(*xy, *integers[0], second) for xy in tensors]
    compiled = []
    for turn in range(2):
        for x, y, L, time, constants in cases:
            module.launch(copy, (3, 2), {"num_warps": 1}, (x, y), (L,), (time,), **constants)
        compiled.append(len(module._compiled))
    direct, launches = launches[len(cases):], []
    for x, y, L, time, constants in cases:
        copy[(3, 2)](x, y, L, time, **constants, num_warps=1)
    print(json.dumps({"direct": direct, "triton": launches, "compiled": compiled}))
"""


@pytest.mark.slow
def test_a_direct_launch_is_tritons_own(run_python, tmp_path):
    """Types, alignment, integers and constants choose the kernel; it gets the same arguments."""
    file = tmp_path / "record.py"  # Triton wants kernels in a file
    file.write_text(textwrap.dedent(RECORD))
    run = "import runpy, sys; runpy.run_path(sys.argv[1])"
    done = run_python(run, str(file), TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path / "c"))
    assert done.returncode == 0, done.stderr
    found = json.loads(re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)[0])
    assert len(found["direct"]) == 20
    assert found["direct"] == found["triton"]
    first, second = found["compiled"]
    assert first == second == 16, "launches that Triton compiles anew for, and no others"
