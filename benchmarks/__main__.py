"""What the head costs here, in time and memory, against what one would use instead.

    python -m benchmarks                                   # two minutes on two cores
    python -m benchmarks --preset paper --json FILE        # all lengths of the paper's data sets
    python -m benchmarks --frames 8 16 32 --grid 14 --heads muse-numba attention-flash

Every head is compared with its definition before it is timed. An interrupted run keeps its rows in
FILE; the same command then measures the others, and those that a busy machine spoilt.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.heads.curves import draw
from benchmarks.heads.pair_loop import measure_pairs
from benchmarks.heads.rows import describe, measure_rows, start
from benchmarks.heads.variants import Variant, variants
from benchmarks.heads.workload import DTYPES, PRESETS, Settings
from benchmarks.machine import write_json
from benchmarks.report import markdown


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark.

    Args:
        arguments: Of the command line (None: the process's).

    Returns:
        0 if all heads agreed with their definitions, else 1; 130 if interrupted.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    settings = _settings(parser, options)
    torch.set_num_threads(settings.threads)
    logging.basicConfig(format="%(message)s")  # kernels say so when they have to be compiled
    logging.getLogger("muse_adapter.ops.numba_cpu").setLevel(logging.INFO)
    if settings.device == "cuda":
        torch.backends.cudnn.allow_tf32 = False  # float32 means float32
    try:
        figures = start(settings, options.json)
    except ValueError as error:
        parser.error(str(error))
    print(", ".join(f"{key} {value}" for key, value in figures["machine"].items()))

    def keep() -> None:
        if options.json:
            write_json(options.json, figures)

    try:
        for row in measure_rows(settings, figures, keep):
            print(describe(row), flush=True)
        for name, reason in figures["not_here"].items():
            print(f"{name} does not run here: {reason}")
        if figures["left_out"]:
            left = ", ".join(f"{name} ({count})" for name, count in figures["left_out"].items())
            print(
                f"stopped after {settings.total_s:.0f} s; left out are the evaluation as a whole "
                f"and, with the number of cases, {left}. --total S gives it more time"
            )
        pairs = figures.get("pair_loop")
        again = pairs is None or pairs["busy"] or pairs["measured"]["size"] != settings.pairs
        if again and not figures["left_out"]:
            figures["pair_loop"] = measure_pairs(settings)
            keep()
    except KeyboardInterrupt:
        kept = f"{len(figures['rows'])} rows are kept in {options.json}" if options.json else ""
        print(f"interrupted{'; ' if kept else ''}{kept}", file=sys.stderr)
        return 130
    print(f"\n{markdown(figures)}")
    if options.plot:
        for file in draw(figures, options.plot):
            print(file)
    return int(any(row.get("wrong") for row in figures["rows"]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--preset", choices=PRESETS, default="quick", help="default: quick")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dtype", choices=DTYPES, help="default: float32")
    parser.add_argument("--frames", type=_positive, nargs="+", metavar="T")
    parser.add_argument(
        "--grid", type=_grid, nargs="+", metavar="HxW", help="patches, 7 is 7x7", dest="grids"
    )
    parser.add_argument("--batch", type=_positive, nargs="+", metavar="B", dest="batches")
    parser.add_argument("--dim", type=_positive, metavar="D", help="width, default: 512")
    parser.add_argument(
        "--heads", nargs="+", metavar="NAME", help="those, also what a preset omits"
    )
    parser.add_argument("--pairs", type=_positive, metavar="N", help="texts, and videos, evaluated")
    parser.add_argument(
        "--limit", type=_seconds, metavar="S", dest="limit_s", help="seconds a run may take"
    )
    parser.add_argument(
        "--total",
        type=_seconds,
        metavar="S",
        dest="total_s",
        help="seconds after which no further row begins (quick: 120, others: no bound)",
    )
    parser.add_argument("--threads", type=_positive, help="default: as many as torch takes")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="keep the figures, go on with them"
    )
    parser.add_argument("--plot", type=Path, metavar="FOLDER", help="draw time.png and memory.png")
    return parser


def _settings(parser: argparse.ArgumentParser, options: argparse.Namespace) -> Settings:
    """Apply the command line to the preset; refuse what cannot run."""
    device = options.device
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU here; --device cpu runs anywhere")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, file in (("--json", options.json), ("--plot", options.plot)):
        if file is not None and not file.absolute().parent.is_dir():
            parser.error(f"{name} {file}: the folder {file.parent} is not there")
    if options.json and options.json.is_dir():
        parser.error(f"--json {options.json} is a folder, expected a file")
    if options.plot and options.plot.is_file():
        parser.error(f"--plot {options.plot} is a file, expected a folder")
    if options.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib: pip install 'muse-adapter[bench]'")
    names = (
        "dtype",
        "frames",
        "grids",
        "batches",
        "dim",
        "heads",
        "pairs",
        "limit_s",
        "total_s",
        "threads",
    )
    given = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    given = {k: tuple(dict.fromkeys(v)) if isinstance(v, list) else v for k, v in given.items()}
    threads = given.pop("threads", torch.get_num_threads())
    settings = dataclasses.replace(PRESETS[options.preset], device=device, threads=threads, **given)
    if settings.dim % 2 or (settings.dim > 64 and settings.dim % 64):
        parser.error(
            f"--dim {settings.dim}: expected an even width up to 64 or a multiple of 64, which the "
            "scales and the heads of attention divide"
        )
    found = variants(settings.device, DTYPES[settings.dtype])
    for name in settings.heads:
        if name not in found:
            parser.error(f"--heads: unknown head {name!r}, expected some of {', '.join(found)}")
        if not isinstance(found[name], Variant):
            parser.error(f"--heads: {name} cannot run here: {found[name]}")
    return settings


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive whole number, got {text!r}")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text!r}")
    return seconds


def _grid(text: str) -> tuple[int, int]:
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) >= 2 for side in sides):
        raise argparse.ArgumentTypeError(
            f"expected sides of at least 2 patches, such as 7 or 7x14, got {text!r}"
        )
    return int(sides[0]), int(sides[-1])


if __name__ == "__main__":
    sys.exit(main())
