"""Machine code of a compiled kernel: its loops, and the mix of instructions in each."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import triton

# What executes an instruction; the first match counts. The unit of exponentials and reciprocals
# (MUFU) also converts between integers and floating point. LDG and STG are all loads and stores
# but those of shared memory. FFMA2, which computes two, counts as one.
PIPES = {
    "MUFU": r"MUFU|I2F|F2I|F2F(?!P)|FRND",
    "FMA": r"FFMA|FMUL|FADD|IMAD|HFMA2|HADD2|HMUL2",
    "SHFL": r"SHFL",
    "BAR": r"BAR|WARPSYNC|DEPBAR|LDGDEPBAR|MEMBAR|SYNCS",
    "LDS": r"LDS",
    "STS": r"STS",
    "LDG": r"LDG|LDL|LD\b",
    "STG": r"STG|STL|ST\b|ATOM|RED\b",
    "uniform": r"U[A-Z]|R2UR|S2UR|LDCU|VOTEU",
    "control": r"BRA|EXIT|NOP|BSSY|BSYNC|RET|CALL|LDC",
    "ALU": r"",  # comparisons, selections, minima, integers, conversions to half precision
}
WITHOUT_RESULT = ("ST", "RED", "BAR", "BRA", "EXIT")
INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z]\S*)\s*(.*?)\s*;")
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
        """Name what executes it."""
        return next(name for name, form in PIPES.items() if re.match(form, self.code))

    @property
    def registers(self) -> int:
        """Count the registers of 32 bits that a load or store moves."""
        return 4 if re.search(r"\.128|\.M88\.4", self.code) else 2 if ".64" in self.code else 1


class Loop(NamedTuple):
    """A loop.

    Attributes:
        code: Its instructions, without those of inner loops.
        inner: Loops inside it, at any depth.
    """

    code: list[Instruction]
    inner: list[Loop]


class Waits(NamedTuple):
    """Loads from global memory in a loop.

    Attributes:
        loads: All. Nothing reads what LDGSTS loads: it goes to shared memory.
        waited: Those that the same turn of the loop needs.
        distance: Fewest instructions from such a load to the first that needs it.
    """

    loads: int
    waited: int
    distance: int


def disassemble(cubin: bytes) -> str:
    """Return the listing of a kernel, with lines of Python in comments."""
    return _run([triton.knobs.nvidia.nvdisasm.path, "-g", "-c"], cubin)


def resources(cubin: bytes) -> dict[str, int]:
    """Read registers of a thread (REG), its bytes on the stack (STACK) and spilled (LOCAL)."""
    text = _run([triton.knobs.nvidia.cuobjdump.path, "-res-usage"], cubin)
    return {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def _run(command: list[str], cubin: bytes) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(cubin)
        return subprocess.run(
            [*command, str(file)], check=True, capture_output=True, text=True
        ).stdout


def parse(listing: str) -> tuple[list[Instruction], list[Loop]]:
    """Read a listing.

    Returns:
        All instructions, and all loops, an outer loop before those inside it.
    """
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    branches: list[tuple[int, str]] = []
    file, line = "", 0
    for text in listing.splitlines():
        if found := LABEL.match(text):
            labels[found[1]] = len(code)
        elif found := LINE.search(text):
            file, line = found[1], int(found[2])
        elif found := INSTRUCTION.match(text):
            if found[1].startswith("BRA") and (target := re.search(r"\((\.L\w+)\)", found[2])):
                branches.append((len(code), target[1]))
            code.append(Instruction(found[1], found[2], file, line))
    # A branch back closes a loop. The jump to itself behind a kernel's end is none.
    spans = [(labels[name], at) for at, name in branches if labels[name] < at]
    loops: dict[tuple[int, int], Loop] = {}
    for first, last in sorted(spans, key=lambda span: span[1] - span[0]):
        nested = [span for span in loops if first <= span[0] and span[1] <= last]
        own = [i for i in range(first, last + 1) if not any(a <= i <= b for a, b in nested)]
        loops[first, last] = Loop([code[i] for i in own], [loops[span] for span in nested])
    in_order = sorted(loops, key=lambda span: (span[0], -span[1]))
    return [item for item in code if item.code != "NOP"], [loops[span] for span in in_order]


def mix(code: Iterable[Instruction]) -> dict[str, int]:
    """Count instructions by what executes them."""
    counts = Counter(item.pipe for item in code)
    return {name: counts[name] for name in PIPES}


def memory_cycles(code: Iterable[Instruction]) -> int:
    """Count cycles of a processor's load and store unit, which moves 128 bytes in one."""
    cycles = 0
    for item in code:
        if item.pipe in ("LDS", "STS", "LDG", "STG"):
            cycles += item.registers
        elif item.pipe == "SHFL":
            cycles += 1
    return cycles


def waits(loop: Sequence[Instruction]) -> Waits:
    """Find the loads of a loop that are not fetched a turn ahead."""
    loads, distances = 0, []
    for index, item in enumerate(loop):
        if item.pipe != "LDG":
            continue
        loads += 1
        target = re.match(r"R(\d+)", item.operands)
        if target is None:
            continue
        wanted = {int(target[1]) + more for more in range(item.registers)}
        for later, other in enumerate(loop[index + 1 :], 1):
            written = re.match(r"R(\d+)", other.operands)
            if other.code.startswith(WITHOUT_RESULT):
                written = None
            read = other.operands if written is None else other.operands[written.end() :]
            if wanted & {int(register) for register in re.findall(r"\bR(\d+)", read)}:
                distances.append(later)
                break
            if written is not None and int(written[1]) in wanted:
                break
    return Waits(loads, len(distances), min(distances, default=0))
