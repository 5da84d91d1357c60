"""The Triton kernels as GPUs would run them: registers, instructions a step, bounds. Needs no GPU.

    python -m benchmarks.kernels                       # sm_80, sm_90 and sm_100
    python -m benchmarks.kernels --target 90 --only gradients --set RUN=4 BLOCK=64 --warps 2
    python -m benchmarks.kernels --json FILE --markdown FILE

Nothing is measured: kernels are compiled ahead of time, instructions in their loops counted, and
the busiest unit gives the least time that they can take.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import triton

from benchmarks import aot, sass
from benchmarks.machine import machine, where, write_json

Row = dict[str, Any]


class Chip(NamedTuple):
    """Rates of a GPU: processors, the highest clock, and lanes of a processor by unit."""

    name: str
    processors: int
    clock_hz: float
    lanes: dict[str, int]


# Assumptions, from the vendor's tables of arithmetic throughput and data sheets: all clocks at their
# highest. 4 warps are issued a clock.
LANES = {"issue": 128, "MUFU": 16, "FMA": 128, "ALU": 64, "memory": 32}
CHIPS = {
    80: Chip("A100", 108, 1.41e9, {**LANES, "FMA": 64}),
    90: Chip("H100", 132, 1.98e9, LANES),
    100: Chip("B200", 148, 1.965e9, LANES),
}
COLUMNS = ("MUFU", "FMA", "ALU", "SHFL", "LDS", "STS", "LDG", "STG", "BAR", "uniform", "control")


def main() -> None:
    """Compile, count and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", type=int, nargs="+", default=sorted(CHIPS))
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
    found = list(aot.kernels())
    names = [name for _, name in found]
    if options.only and (unknown := set(options.only) - set(names)):
        raise SystemExit(f"there is no kernel {', '.join(sorted(unknown))}: {', '.join(names)}")
    rows = [
        row
        for target in options.target
        for module, name in found
        if not options.only or name in options.only
        for row in [describe(module, name, target, options)]
    ]
    figures = {"machine": machine(), "settings": settings(options), "kernels": rows}
    text = markdown(figures)
    print(text)
    if options.json:
        write_json(options.json, figures)
    if options.markdown:
        options.markdown.write_text(text, encoding="utf-8")


def settings(options: argparse.Namespace) -> dict[str, Any]:
    """Return what the bounds were computed for."""
    chips = {target: CHIPS[target]._asdict() for target in options.target}
    return {"batch": options.batch, "length": options.length, "chips": chips}


def given(pairs: list[str]) -> dict[str, Any]:
    """Read CONSTANT=VALUE, values as Python writes them."""
    return {key: ast.literal_eval(value) for key, _, value in (p.partition("=") for p in pairs)}


def describe(module: ModuleType, name: str, target: int, options: argparse.Namespace) -> Row:
    """Compile a kernel and count what its loops do in a step."""
    values = aot.constants(module, name, given(options.set))
    more = {"num_warps": options.warps, "maxnreg": options.maxnreg}
    more = {key: value for key, value in more.items() if value is not None}
    types = dict(pair.split("=") for pair in options.type)
    compiled = aot.compile_kernel(module, name, ("cuda", target, 32), values, types, **more)
    warps = compiled.metadata.num_warps
    cubin = compiled.asm["cubin"]
    listing = sass.disassemble(cubin)
    if options.sass:
        options.sass.mkdir(parents=True, exist_ok=True)
        (options.sass / f"{name}_{target}.sass").write_text("\n".join(listing))
    code, loops = sass.parse(listing)
    source = Source(getattr(module, name).fn)
    turns = warp_steps(name, values, warps, options)
    parts = [loop_row(loop, source, values, warps) for loop in loops]
    parts = [part for part in parts if part is not None]
    if not parts:  # all in one go
        turns = turns / values["STEPS"] if "STEPS" in values else turns
        parts = [{"loop": "none: the whole kernel", "steps": 1, "share": 1.0, **counts(code, 1)}]
    return {
        "kernel": name,
        "target": target,
        "warps": warps,
        **{k.lower(): v for k, v in sass.resources(cubin).items()},
        "shared": compiled.metadata.shared,
        "loops": parts,
        "bound": bound(parts, turns, CHIPS[target]),
    }


def counts(code: list[sass.Instruction], steps: int) -> Row:
    """Instructions a step by unit, in all, and what is waited for."""
    mixed = sass.mix(code)
    return {
        **sass.per_step(mixed, steps),
        "total": round(sum(mixed.values()) / steps, 2),
        "memory": round(sass.wavefronts(code) / steps, 2),
        "waits": sass.waits(code),
    }


def warp_steps(name: str, values: Mapping[str, Any], warps: int, options: Any) -> float:
    """How many steps all warps take together, for both directions."""
    width = values.get("BLOCK", values.get("WIDTH"))
    programs = options.batch * math.ceil(values["E"] / width) * warps
    length = options.segments if name == "carries" else options.length
    return programs * length * (2 if "BLOCK" in values else 1)


class Source:
    """The loops of a kernel as Python writes them."""

    def __init__(self, function: Any) -> None:
        lines, first = inspect.getsourcelines(function)
        self.file = inspect.getsourcefile(function)
        self.lines = {first + i: text for i, text in enumerate(lines)}
        tree = ast.parse(textwrap.dedent("".join(lines)))
        ast.increment_lineno(tree, first - 1)
        self.loops = [
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.For) and "static_range" not in ast.unparse(node.iter)
        ]

    def loop_of(self, code: list[sass.Instruction]) -> ast.For | None:
        """Return the innermost loop that holds most lines of these instructions.

        Not all: compilers move code, and give lines that they merge to one of the two.
        """
        mine = [item.line for item in code if item.file == self.file]

        def held(node: ast.For) -> int:
            return sum(node.lineno <= line <= (node.end_lineno or 0) for line in mine)

        most = max(map(held, self.loops), default=0)
        fitting = [node for node in self.loops if most and held(node) > most / 2]
        return max(fitting, key=lambda node: node.lineno, default=None)

    def exponentials(self, code: list[sass.Instruction]) -> int:
        """Most exponentials of one line, outside of functions that are called."""
        lines = [
            item.line
            for item in code
            if item.code.startswith("MUFU.EX2")
            and item.file == self.file
            and "exp2" in self.lines.get(item.line, "")
        ]
        return max((lines.count(line) for line in set(lines)), default=0)


def loop_row(loop: sass.Loop, source: Source, values: Mapping[str, Any], warps: int) -> Row | None:
    """Count a loop's instructions for one step of time; None if it stands in no loop of Python."""
    node = source.loop_of(loop.own)
    if node is None:
        return None
    variable, over = ast.unparse(node.target), ast.unparse(node.iter)
    steps = steps_of(node, values)
    if steps is None:
        # One line makes the decays of a whole tile once a step; compilers unroll.
        tile = values.get("STATES", 0) * values.get("BLOCK", 0) / (32 * warps)
        steps = max(1, round(source.exponentials(loop.own) / tile)) if tile else 1
    share = 1.0
    if any(
        node in ast.walk(other) for other in source.loops if "runs - 1" in ast.unparse(other.iter)
    ):
        share = 1 - values["RUN"] / values["CHUNK"]  # all runs but a chunk's last
    title = f"`for {variable} in {over}`, line {node.lineno}"
    return {"loop": title, "steps": steps, "share": round(share, 3), **counts(loop.own, steps)}


def steps_of(node: ast.For, values: Mapping[str, Any]) -> int | None:
    """Steps of time in a turn of a loop over chunks or runs, or with steps written out in it."""
    variable = ast.unparse(node.target)
    for word in ("chunk", "run"):
        if variable.startswith(word) and word.upper() in values:
            return int(values[word.upper()])
    for inner in ast.walk(node):
        if isinstance(inner, ast.For) and "static_range" in ast.unparse(inner.iter):
            assigned = {
                ast.unparse(target)
                for part in ast.walk(inner)
                if isinstance(part, ast.Assign)
                for target in part.targets
            }
            count = ast.unparse(inner.iter.args[0]) if isinstance(inner.iter, ast.Call) else ""
            if "t" in assigned and count in values:
                return int(values[count])
    return None


def bound(parts: list[Row], turns: float, chip: Chip) -> Row:
    """Least time by unit, in microseconds, and the unit that is busiest."""

    def a_step(*keys: str) -> float:
        return sum(part["share"] * sum(part[key] for key in keys) for part in parts)

    needs = {
        "issue": a_step("total"),
        **{unit: a_step(unit) for unit in ("MUFU", "FMA", "ALU", "memory")},
    }
    rate = chip.processors * chip.clock_hz / 32e6
    times = {unit: turns * need / (rate * chip.lanes[unit]) for unit, need in needs.items()}
    limit = max(times, key=lambda unit: times[unit])
    return {"us": {k: round(v, 1) for k, v in times.items()}, "limit": limit}


def markdown(figures: Mapping[str, Any]) -> str:
    """Write the tables, one for each target."""
    chosen = figures["settings"]
    lines = [
        "# Triton kernels, compiled ahead of time",
        "",
        f"Computed, not measured. {where(figures['machine'])}, triton {triton.__version__}. "
        f"Batch {chosen['batch']}, {chosen['length']} tokens, both directions, bfloat16 inputs, "
        "float32 state. Instructions are those of a warp for one step of time (or, without a loop, "
        "of a whole program). `waits`: loads whose result the same turn of the loop needs, of all "
        "its loads, and the fewest instructions between such a load and its use. The bound is "
        "the time of the busiest unit if nothing else took any.",
    ]
    for target, chip in chosen["chips"].items():
        rows = [row for row in figures["kernels"] if row["target"] == target]
        rates = ", ".join(f"{unit} {lanes}" for unit, lanes in chip["lanes"].items())
        lines += [
            "",
            f"## sm_{target}: {chip['name']}, {chip['processors']} processors at "
            f"{chip['clock_hz'] / 1e9:g} GHz (assumed)",
            "",
            f"Lanes of a processor: {rates}.",
            "",
            "| kernel | registers | stack, spills | shared | warps | bound, us | issue | MUFU | FMA "
            "| ALU | memory |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(_summary(row) for row in rows),
            "",
            f"| loop | steps a turn | {' | '.join(COLUMNS)} | total | waits |",
            "|---|---|" + "---|" * (len(COLUMNS) + 2),
            *(_loop(row, part) for row in rows for part in row["loops"]),
        ]
    return "\n".join(lines) + "\n"


def _summary(row: Row) -> str:
    times, limit = row["bound"]["us"], row["bound"]["limit"]
    cells = [
        row["kernel"], row["reg"], f"{row['stack']}, {row['local']}", row["shared"], row["warps"],
        f"{times[limit]:g} ({limit})", *(f"{time:g}" for time in times.values()),
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def _loop(row: Row, part: Row) -> str:
    waits = part["waits"]
    seen = f"{waits['waited']} of {waits['loads']}"
    if waits["waited"]:
        seen += f", {waits['distance']}"
    name = f"{row['kernel']}: {part['loop']}"
    cells = [name, part["steps"], *(f"{part[c]:g}" for c in COLUMNS), f"{part['total']:g}", seen]
    return "| " + " | ".join(map(str, cells)) + " |"


if __name__ == "__main__":
    main()
