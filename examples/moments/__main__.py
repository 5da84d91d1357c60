"""Command line of the example: `python -m examples.moments [options]`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.command_line import exit_status
from examples.moments.compare import RATES, SEEDS, TRAINED, compare, markdown_table
from examples.moments.confirm import confirm
from examples.moments.demo import demo
from examples.moments.material import load_material
from examples.moments.own_features import train_on_features
from examples.moments.report import COMMAND
from examples.moments.settings import Corpus, RunSettings, TowerSettings
from muse_adapter.data.prvr import open_prvr
from muse_adapter.presets import MAMFUSION_SETTINGS

OF_COMPARE = ("methods", "rates", "seeds")  # options that mean nothing without it


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Render long videos, train MamFusion on features of a frozen tower, and find "
        "the videos that have the moment of a sentence.",
    )
    parser.add_argument("--folder", type=Path, default=Path("moments-output"),
                        help="everything is kept here (default: %(default)s)")  # fmt: skip
    parser.add_argument("--compare", action="store_true",
                        help="the full study: 7 methods, 3 learning rates, 3 seeds")  # fmt: skip
    parser.add_argument("--methods", nargs="+", choices=TRAINED, metavar="M",
                        help=f"of --compare, all by default: {', '.join(TRAINED)}")  # fmt: skip
    parser.add_argument("--rates", nargs="+", type=float, metavar="LR",
                        help=f"rates of --compare (default: {_listed(RATES)})")  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED",
                        help=f"seeds of --compare (default: {_listed(SEEDS)})")  # fmt: skip
    parser.add_argument("--confirm", type=int, metavar="SEED",
                        help="the study's runs on test videos of another seed")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--epochs", type=int,
                        help="passes over the training videos")  # fmt: skip
    parser.add_argument(
        "--data", type=Path, metavar="FOLDER", help="features of MS-SL's files to train on"
    )
    parser.add_argument(
        "--dataset", choices=list(MAMFUSION_SETTINGS), help="of the features in --data"
    )
    parser.add_argument("--threads", type=int,
                        help="CPU threads, and at most as many processes that render "
                        "(default: torch's own choice)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together.

    Raises:
        ValueError: They do not; the message says which.
    """
    if (options.data is None) != (options.dataset is None):
        raise ValueError("--data and --dataset belong together: give both or none")
    if options.data is not None and (options.compare or options.confirm is not None):
        raise ValueError("--compare and --confirm are of the rendered videos: leave out --data")
    if options.confirm is not None and (options.compare or options.seed or options.epochs):
        raise ValueError("--confirm trains nothing: leave out --compare, --seed and --epochs")
    if options.compare and options.seed:
        raise ValueError(f"--compare takes --seeds, got --seed {options.seed}")
    for name in OF_COMPARE:
        values = getattr(options, name)
        if values is not None and not options.compare:
            raise ValueError(f"--{name} is of --compare: give both or none")
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"--{name} must not repeat a value, got {_listed(values)}")
    for name in ("threads", "epochs"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}")


def run_command(options: argparse.Namespace) -> None:
    """Do what the options ask for."""
    began = time.perf_counter()
    check_options(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    fields = {} if options.epochs is None else {"epochs": options.epochs}
    if options.data is not None:
        results = train_on_features(
            open_prvr(options.data, options.dataset),
            MAMFUSION_SETTINGS[options.dataset],
            options.folder,
            seed=options.seed,
            progress=not options.quiet,
            **fields,
        )
        print("  ".join(f"{name} {value:.1f}" for name, value in results["test"].items()))
        print(f"results: {options.folder / 'results.json'}, model: {options.folder / 'model'}")
        return
    progress = not options.quiet
    if options.confirm is not None:
        summary = confirm(
            Corpus(), TowerSettings(), options.folder, options.confirm, progress=progress
        )
        print(markdown_table(summary))
        print(f"results: {options.folder / 'confirm.json'}, {options.folder / 'confirm.md'}")
        return
    material = load_material(Corpus(), TowerSettings(), options.folder, progress=progress)
    if options.compare:
        summary = compare(
            material,
            options.folder,
            progress=progress,
            **{name: getattr(options, name) for name in OF_COMPARE if getattr(options, name)},
            **fields,
        )
        print(markdown_table(summary))
        print(f"results: {options.folder / 'compare.json'}, {options.folder / 'compare.md'}")
        return
    settings = RunSettings(seed=options.seed, **fields)
    summary = demo(settings, material, options.folder, began=began, progress=progress)
    print(f"\nresults: {options.folder / 'results.json'}")
    print(f"picture: {options.folder / 'contact_sheet.png'}")
    peak = f"at most {summary['peak_gib']:.1f} GiB of the main process"
    print(f"total time: {summary['seconds']:.0f} s, {peak}")


def _listed(values: Sequence[object]) -> str:
    return " ".join(map(str, values))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    options = build_parser().parse_args(arguments)
    return exit_status(lambda: run_command(options))


if __name__ == "__main__":
    sys.exit(main())
