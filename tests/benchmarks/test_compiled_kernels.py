"""Counting what compiled kernels do: listings are read right, bounds follow."""

from __future__ import annotations

import json
import re

import pytest

pytest.importorskip("triton", "3.6", reason="the compiler's interface of triton 3.6")

from benchmarks.gpu import aot, loops, sass
from benchmarks.gpu.compiled_kernels import Chip, bound, pairs
from muse_adapter.ops.triton_gpu import function

# An outer loop of 3 instructions of its own, around an inner one of 9.
LISTING = """
kernel:
	//## File "kernel.py", line 3
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_2:
        /*0010*/                   IADD3 R0, R0, 0x1, RZ ;
.L_x_1:
	//## File "kernel.py", line 5
        /*0020*/                   LDG.E.U16 R4, desc[UR4][R2.64] ;
        /*0030*/                   LDG.E.64 R6, desc[UR4][R8.64+0x8] ;
        /*0040*/                   MUFU.EX2 R5, R5 ;
        /*0050*/                   FFMA R5, R7, R5, R5 ;
        /*0060*/               @P0 FMUL R4, R5, 0.25 ;
        /*0070*/                   SHFL.BFLY PT, R10, R5, 0x1, 0x1f ;
        /*0080*/                   STS.128 [R11], R12 ;
        /*0090*/                   I2F.RP R5, UR11 ;
        /*00a0*/               @P1 BRA `(.L_x_1) ;
        /*00b0*/                   UIADD3 UR4, UR4, 0x1, URZ ;
        /*00c0*/              @!P0 BRA `(.L_x_2) ;
        /*00d0*/                   EXIT ;
.L_x_3:
        /*00e0*/                   BRA `(.L_x_3);
        /*00f0*/                   NOP;
"""


def test_loops_of_a_listing():
    code, (outer, inner) = sass.parse(LISTING)
    assert len(code) == 15 and code[1].line == 3 and code[2].line == 5
    assert [item.code for item in outer.code] == ["IADD3", "UIADD3", "BRA"]
    assert outer.inner == [inner] and inner.inner == []
    inner = inner.code
    assert len(inner) == 9 and inner[4].operands == "R4, R5, 0.25"
    expected = {"MUFU": 2, "FMA": 2, "SHFL": 1, "STS": 1, "LDG": 2, "control": 1}
    assert {name: n for name, n in sass.mix(inner).items() if n} == expected
    # Loads of 1 and 2 registers, a shuffle, a store of 4.
    assert sass.memory_cycles(inner) == 1 + 2 + 1 + 4


def test_loads_that_a_turn_waits_for():
    """R7, the second register of its load, is read 2 on; R4 is written over before it is read."""
    _, (_, inner) = sass.parse(LISTING)
    assert sass.waits(inner.code) == sass.Waits(loads=2, waited=1, distance=2)
    to_shared = sass.Instruction("LDGSTS.E.64", "[R7], desc[UR4][R8.64]", "kernel.py", 5)
    assert sass.waits([to_shared, *inner.code]) == sass.Waits(loads=3, waited=1, distance=2)
    assert sass.memory_cycles([to_shared]) == 2


def nested(chunks, runs, begin, stop, STEPS, WIDE):
    """Loops as kernels have them."""
    for chunk_back in range(chunks):
        for run in range(0, runs, WIDE // STEPS):
            print(chunk_back, run)
        for run_back in range(runs):
            print(chunk_back, run_back)
    for t in range(begin, stop, STEPS):
        print(t)


def test_loops_of_python():
    """A loop of chunks may have no line but those of a loop inside it."""
    source = loops.Source(nested, {"CHUNK": 32, "STEPS": 2, "WIDE": 4}, warps=1)
    first = nested.__code__.co_firstlineno

    def loop(line, *inner):
        return sass.Loop([sass.Instruction("LDG", "R1", __file__, first + line)], list(inner))

    run, run_back = loop(4), loop(6)
    expected = [
        (loop(6, run, run_back), "`for chunk_back in range(chunks)`", 2, 32),
        (run, "`for run in range(0, runs, WIDE // STEPS)`", 3, 4),
        (run_back, "`for run_back in range(runs)`", 5, 2),
        (loop(8), "`for t in range(begin, stop, STEPS)`", 7, 2),
    ]
    for compiled, title, line, steps in expected:
        assert source.turn(compiled) == (f"{title}, line {first + line}", steps)
    assert source.turn(loop(1)) is None


def test_bound_is_of_the_busiest_unit():
    chip = Chip("", 100, 1e9, {"issue": 128, "MUFU": 16})
    parts = [
        {"total": 20, "MUFU": 4},
        {"total": 4, "MUFU": 1},
    ]
    found = bound(parts, 1_000_000, chip)
    assert found["limit"] == "MUFU"
    # 5 and 24 instructions of 32 lanes, a million times; 16 and 128 lanes, 100 processors, 1 GHz.
    assert found["busy_us"] == pytest.approx({"MUFU": 100.0, "issue": 60.0})


def test_wrong_arguments():
    with pytest.raises(SystemExit, match="expected KEY=VALUE, got BLOCK"):
        pairs(["RUN=3", "BLOCK"])

    class Parameter:
        name, is_constexpr = "NEW", True

    class Kernel:
        params = (Parameter,)

    class Module:
        __name__ = "folder.forward"
        kernel = Kernel

    with pytest.raises(ValueError, match=r"kernel kernel has a constant .*: give NEW=\.\.\."):
        aot.constants(Module(), "kernel", {})
    assert aot.constants(Module(), "kernel", {"NEW": 2}) == {"NEW": 2}
    module = Module()
    module.NEW_FORWARD = 3  # the package's own value
    assert aot.constants(module, "kernel", {}) == {"NEW": 3}


def test_the_interpreter_cannot_compile(monkeypatch):
    monkeypatch.setattr(aot.triton.knobs.runtime, "interpret", True)
    with pytest.raises(RuntimeError, match="unset TRITON_INTERPRET"):
        list(aot.kernels())


@pytest.mark.slow
def test_command(run_python, tmp_path):
    """One kernel, for two block sizes: twice the channels are twice the work of a program."""
    code = """
        import sys
        from benchmarks.gpu.compiled_kernels import main
        given, file = ["main", "--target", "90", "--only", "summaries"], sys.argv[1]
        for block in ("32", "64"):
            sys.argv = [*given, "--set", f"BLOCK={block}", "--json", file + block]
            main()
    """
    given = {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = run_python(code, str(tmp_path / "figures"), **given)
    assert done.returncode == 0, done.stderr
    assert len(re.findall(r"^\| summaries \| \d+ \| 0 \| 0 \|", done.stdout, re.MULTILINE)) == 2
    files = [tmp_path / f"figures{block}" for block in (32, 64)]
    rows = [row for file in files for row in json.loads(file.read_text())["kernels"]]
    found = [next(loop for loop in row["loops"] if loop["MUFU"]) for row in rows]
    # Exponentials of 16 states by 32 channels, by a warp; those of softplus come on top.
    assert 16 <= found[0]["MUFU"] <= 20 and 32 <= found[1]["MUFU"] <= 40
    assert (
        all(loop["steps"] == function.STEPS_FORWARD for loop in found)
        and rows[0]["limit"] in rows[0]["busy_us"]
    )
