"""The Triton kernels as GPUs would run them: registers, instructions a step, bounds. Needs no GPU.

    python -m benchmarks.gpu.compiled_kernels                       # sm_80, sm_90 and sm_100
    python -m benchmarks.gpu.compiled_kernels --target 90 --only gradients --set BLOCK=64 --warps 2
    python -m benchmarks.gpu.compiled_kernels --json FILE --markdown FILE

Nothing is measured: kernels are compiled ahead of time, instructions in their loops are counted,
and the busiest unit gives the least time that they can take.
"""

from __future__ import annotations

import argparse
import ast
import math
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import triton

from benchmarks.gpu import aot, sass
from benchmarks.gpu.loops import Source, Turn
from benchmarks.machine import machine, where, write_json

Row = dict[str, Any]


class Chip(NamedTuple):
    """Rates of a GPU: processors, their highest clock, and lanes of a processor by unit."""

    name: str
    processors: int
    clock_hz: float
    lanes: dict[str, int]


# Assumed, from the vendor's data sheets and its table of arithmetic throughput: a processor issues
# 4 warps a clock, and keeps its highest clock.
LANES = {"issue": 128, "MUFU": 16, "FMA": 128, "ALU": 64, "memory": 32}
CHIPS = {
    80: Chip("A100", 108, 1.41e9, {**LANES, "FMA": 64}),
    90: Chip("H100", 132, 1.98e9, LANES),
    100: Chip("B200", 148, 1.965e9, LANES),
}
COLUMNS = (*sass.PIPES, "total")


def main() -> None:
    """Compile, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, nargs="+", default=list(CHIPS), choices=CHIPS)
    parser.add_argument("--only", nargs="+", metavar="KERNEL")
    parser.add_argument("--set", nargs="+", default=[], metavar="CONSTANT=VALUE")
    parser.add_argument("--type", nargs="+", default=[], metavar="PARAMETER=TYPE", help="dy0=*bf16")
    parser.add_argument("--warps", type=int, help="warps of a program")
    parser.add_argument("--maxnreg", type=int, help="registers of a thread, at most")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=3060)
    parser.add_argument("--segments", type=int, default=4, help="of time, for `carries`")
    parser.add_argument("--sass", type=Path, help="write listings to this folder")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    options = parser.parse_args()
    found = {name: module for module, name in aot.kernels()}
    names = options.only or list(found)
    if unknown := set(names) - set(found):
        raise SystemExit(f"no kernel {', '.join(sorted(unknown))}: there are {', '.join(found)}")
    rows = [
        describe(found[name], name, target, options) for target in options.target for name in names
    ]
    chips = {target: CHIPS[target]._asdict() for target in options.target}
    settings = {"batch": options.batch, "length": options.length, "chips": chips}
    figures = {"machine": machine(), "settings": settings, "kernels": rows}
    text = markdown(figures)
    print(text)
    if options.json:
        write_json(options.json, figures)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def describe(module: ModuleType, name: str, target: int, options: argparse.Namespace) -> Row:
    """Compile a kernel, and count what its loops do in a step."""
    given = {key: ast.literal_eval(value) for key, value in pairs(options.set)}
    chosen = {"num_warps": options.warps, "maxnreg": options.maxnreg}
    compiled = aot.compile_kernel(
        *(module, name, ("cuda", target, 32)),
        given=given,
        types=dict(pairs(options.type)),
        options={key: value for key, value in chosen.items() if value is not None},
    )
    listing = sass.disassemble(compiled.asm["cubin"])
    if options.sass:
        options.sass.mkdir(parents=True, exist_ok=True)
        (options.sass / f"{name}_{target}.sass").write_text(listing)
    values, warps = aot.constants(module, name, given), compiled.metadata.num_warps
    code, loops = sass.parse(listing)
    source = Source(getattr(module, name).fn, values, warps)
    turns = [(turn, loop.code) for loop in loops if (turn := source.turn(loop)) is not None]
    if not turns:
        turns = [(Turn("no loop: all of a program", 1), code)]
    parts = [counts(turn, loop) for turn, loop in turns]
    return {
        "kernel": name,
        "target": target,
        "warps": warps,
        **aot.usage(compiled),
        "shared": compiled.metadata.shared,
        "loops": parts,
        **bound(parts, warp_steps(name, values, warps, options), CHIPS[target]),
    }


def pairs(given: list[str]) -> list[tuple[str, str]]:
    """Split KEY=VALUE.

    Raises:
        SystemExit: There is no =.
    """
    if wrong := [pair for pair in given if "=" not in pair]:
        raise SystemExit(f"expected KEY=VALUE, got {wrong[0]}")
    return [(key, value) for key, _, value in (pair.partition("=") for pair in given)]


def counts(turn: Turn, code: list[sass.Instruction]) -> Row:
    """Count the instructions of a warp in a step of time, by unit and in all."""
    mix = sass.mix(code)
    cycles = {**mix, "total": sum(mix.values()), "memory": sass.memory_cycles(code)}
    a_step = {unit: count / turn.steps for unit, count in cycles.items()}
    return {**turn._asdict(), **a_step, "waits": sass.waits(code)._asdict()}


def warp_steps(
    name: str, values: Mapping[str, Any], warps: int, options: argparse.Namespace
) -> int:
    """Count the steps of all warps. A scan has a program for each direction, others for both."""
    scan = "BLOCK" in values
    blocks = math.ceil(values["E"] / values["BLOCK" if scan else "WIDTH"])
    length = options.segments if name == "carries" else options.length
    return options.batch * blocks * warps * length * (2 if scan else 1)


def bound(parts: list[Row], steps: int, chip: Chip) -> Row:
    """Compute how long each unit is busy, in microseconds, and name the busiest."""
    times = {}
    for unit, lanes in chip.lanes.items():
        key = "total" if unit == "issue" else unit
        a_step = sum(part[key] for part in parts)
        times[unit] = steps * a_step * 32 / lanes / (chip.processors * chip.clock_hz) * 1e6
    return {"busy_us": times, "limit": max(times, key=lambda unit: times[unit])}


def markdown(figures: Mapping[str, Any]) -> str:
    """Write two tables for each target: kernels, and their loops."""
    settings = figures["settings"]
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"Computed, not measured: {where(figures['machine'])}, triton {triton.__version__}. Batch "
        f"{settings['batch']}, {settings['length']} tokens, both directions, bfloat16 inputs, "
        "float32 state.",
        "",
        "The first table has the time, in microseconds, that each unit is busy; the bound is the "
        "busiest one. The second has the instructions of a warp for a step of time; without a "
        "loop a program has one step. Waits: loads whose result the same turn of the loop needs, "
        "of how many loads in a turn, and the fewest instructions between such a load and what "
        "needs it. Loads to shared memory (LDGSTS) are for a later turn.",
    ]
    for target, chip in settings["chips"].items():
        rows = [row for row in figures["kernels"] if row["target"] == target]
        lanes = ", ".join(f"{unit} {count}" for unit, count in chip["lanes"].items())
        lines += [
            "",
            f"## sm_{target}",
            "",
            f"Assumed for {chip['name']}: {chip['processors']} processors at "
            f"{chip['clock_hz'] / 1e9:g} GHz, lanes of each: {lanes}.",
            "",
            *_table("kernel", "registers", "stack", "spills", "shared", "warps", "bound", *LANES),
            *(_kernel(row) for row in rows),
            "",
            *_table("loop", "steps a turn", *COLUMNS, "waits"),
            *(_loop(row["kernel"], part) for row in rows for part in row["loops"]),
        ]
    return "\n".join(lines) + "\n"


def _kernel(row: Row) -> str:
    times, limit = row["busy_us"], row["limit"]
    uses = [row[key] for key in ("kernel", "REG", "STACK", "LOCAL", "shared", "warps")]
    return _line(
        *uses, f"{times[limit]:.1f} ({limit})", *(f"{time:.1f}" for time in times.values())
    )


def _loop(kernel: str, part: Row) -> str:
    waits = part["waits"]
    seen = f"{waits['waited']} of {waits['loads']}"
    seen += f", {waits['distance']}" if waits["waited"] else ""
    a_step = (f"{part[unit]:.4g}" for unit in COLUMNS)
    return _line(f"{kernel}: {part['title']}", part["steps"], *a_step, seen)


def _table(*titles: str) -> list[str]:
    return [_line(*titles), "|---" * len(titles) + "|"]


def _line(*cells: Any) -> str:
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
