"""Machine code of a compiled kernel: its loops, and the mix of instructions in each."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple

import triton

# First match counts. XU: the unit of exponentials and reciprocals also converts between integers
# and floating point. ALU: comparisons, selections, minima, integers, conversions to half.
PIPES = {
    "MUFU": r"MUFU|I2F|F2I|F2F(?!P)|FRND|I2I",
    "FMA": r"FFMA|FMUL|FADD(?!\w)|FADD2|IMAD|HFMA2|HADD2|HMUL2|DFMA|DADD|DMUL",
    "SHFL": r"SHFL",
    "LDS": r"LDSM|LDS",
    "STS": r"STSM|STS",
    "LDG": r"LDG|LD\b|LDL",
    "STG": r"STG|ST\b|STL|ATOM|RED\b",
    "BAR": r"BAR|WARPSYNC|DEPBAR|LDGDEPBAR|MEMBAR|SYNCS",
    "control": r"BRA|EXIT|NOP|BSSY|BSYNC|RET|CALL|BREAK|YIELD|WARPSYNC",
    "uniform": r"U[A-Z]|R2UR|S2UR|LDCU|REDUX|VOTEU",
    "ALU": r".",
}
STORES = ("ST", "RED", "BAR", "BRA", "EXIT")
INSTRUCTION = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;")
LABEL = re.compile(r"^(\.L\w+):")
LINE = re.compile(r'//## File "(.*)", line (\d+)')


class Instruction(NamedTuple):
    """One instruction, and the line of Python that it comes from."""

    code: str
    operands: str
    file: str
    line: int

    @property
    def pipe(self) -> str:
        """What executes it."""
        return next(name for name, form in PIPES.items() if re.match(form, self.code))


class Loop(NamedTuple):
    """A loop, from its first instruction to the branch back; inner loops are left out of `own`."""

    first: int
    last: int
    inner: bool
    own: list[Instruction]


def disassemble(cubin: bytes) -> list[str]:
    """Return the listing of a kernel, with lines of Python in comments."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.nvdisasm.path, "-g", "-c", file.name]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split(
            "\n"
        )


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, bytes on its stack and spilled (LOCAL), shared bytes of a program."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {k: int(v) for k, v in re.findall(r"(REG|STACK|SHARED|LOCAL):(\d+)", done.stdout)}


def parse(listing: Iterable[str]) -> tuple[list[Instruction], list[Loop]]:
    """Find instructions and loops: a branch to a label in front of it closes a loop."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    file, line = "", 0
    for text in listing:
        if found := LABEL.match(text):
            labels[found[1]] = len(code)
        elif found := LINE.search(text):
            file, line = found[1], int(found[2])
        elif found := INSTRUCTION.match(text):
            if found[3].startswith("BRA") and (target := re.search(r"\((\.L\w+)\)", found[4])):
                branches.append((len(code), target[1]))
            code.append(Instruction(found[3], found[4], file, line))
    spans = sorted(  # a kernel ends with a jump to itself, which nothing reaches
        (labels[name], at) for at, name in branches if labels[name] < at
    )
    loops = []
    for first, last in spans:
        nested = [s for s in spans if s != (first, last) and first <= s[0] and s[1] <= last]
        own = [code[i] for i in range(first, last + 1) if not any(a <= i <= b for a, b in nested)]
        loops.append(Loop(first, last, not nested, own))
    end = next((i for i, item in enumerate(code) if item.code == "EXIT"), len(code))
    while end < len(code) and not all(item.code == "NOP" for item in code[end + 1 :]):
        end += 1
    return [item for item in code[:end] if item.code != "NOP"], loops


def mix(code: Iterable[Instruction]) -> dict[str, int]:
    """Count instructions by what executes them."""
    counts: Counter[str] = Counter(item.pipe for item in code)
    return {name: counts[name] for name in PIPES}


def wavefronts(code: Iterable[Instruction]) -> int:
    """Cycles of a processor's load and store unit: 128 bytes each from and to shared memory."""
    cycles = 0
    for item in code:
        if item.pipe in ("LDS", "STS"):
            cycles += 4 if re.search(r"\.128|\.4\b", item.code) else 2 if ".64" in item.code else 1
        elif item.pipe in ("LDG", "STG", "SHFL"):
            cycles += 1
    return cycles


def waits(loop: list[Instruction]) -> dict[str, int]:
    """Loads from global memory, and those that the same turn of the loop waits for.

    Returns:
        `loads`, `waited`: used in the same turn, `distance`: fewest instructions from such a load
        to its first use.
    """
    loads, distances = 0, []
    for index, item in enumerate(loop):
        if item.pipe != "LDG" or item.code.startswith("LDGSTS"):
            continue
        loads += 1
        if (target := re.match(r"R(\d+)", item.operands)) is None:
            continue
        width = 4 if ".128" in item.code else 2 if ".64" in item.code else 1
        mine = {int(target[1]) + k for k in range(width)}
        for later in range(index + 1, len(loop)):
            code, operands = loop[later].code, loop[later].operands
            written = None if code.startswith(STORES) else re.match(r"R(\d+)", operands)
            read = operands if written is None else operands[written.end() :]
            if any(int(r) in mine for r in re.findall(r"\bR(\d+)", read)):
                distances.append(later - index)
                break
            if written is not None and int(written[1]) in mine:
                break
    return {"loads": loads, "waited": len(distances), "distance": min(distances, default=0)}


def per_step(counts: dict[str, int], steps: int) -> dict[str, Any]:
    """Divide a mix by the steps in a turn of the loop."""
    return {name: round(count / steps, 2) for name, count in counts.items()}
