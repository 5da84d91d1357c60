"""Command line of the quickstart: `python -m examples.quickstart [search "words"] [options]`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from examples.command_line import exit_status
from examples.quickstart.compare import ENTRIES, compare, markdown_tables
from examples.quickstart.demo import demo
from examples.quickstart.material import load_material
from examples.quickstart.scenes import QUERY
from examples.quickstart.search import search
from examples.quickstart.settings import Settings
from muse_adapter.search.listing import printable
from muse_adapter.search.page import write_page

# What the reader has typed: the script that makes the environment, or Python itself.
COMMAND = os.environ.get("QUICKSTART_COMMAND", "python -m examples.quickstart")

STUDY_STEPS = 800  # of each head in `--compare`


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Train MUSE and mean pooling on a small corpus of real video files, evaluate "
        "both on held-out clips, draw pictures; then search the clips by words.",
    )
    parser.add_argument("command", nargs="?", choices=["search"], help="search the trained clips")
    parser.add_argument("words", nargs="?", help="what to search for, in quotes")
    parser.add_argument("--html", type=Path, metavar="FILE",
                        help="with search: a page that shows and plays the clips")  # fmt: skip
    parser.add_argument("--folder", type=Path, default=Path("quickstart-output"),
                        help="everything is kept here (default: %(default)s)")  # fmt: skip
    parser.add_argument(
        "--compare", action="store_true", help="the full study: 8 heads, 2 more objectives, 3 seeds"
    )
    parser.add_argument("--entries", type=lambda names: names.split(","), metavar="NAME,...",
                        help=f"with --compare, these alone: {', '.join(ENTRIES)}")  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the training (default: 0)")
    parser.add_argument("--steps", type=int,
                        help="training steps (default: 600; 800 with --compare)")  # fmt: skip
    parser.add_argument("--clips", type=int,
                        help="training clips to render, even (default: 2000)")  # fmt: skip
    own = parser.add_argument_group("own material")
    own.add_argument("--videos", type=Path, metavar="FOLDER", help="folder of your videos")
    own.add_argument("--captions", type=Path, metavar="CSV", help="CSV of their captions")
    own.add_argument("--backbone", type=Path, metavar="FOLDER",
                     help="folder of a pretrained Hugging Face CLIP")  # fmt: skip
    own.add_argument("--train-backbone", action="store_true", help="let the CLIP learn too")
    own.add_argument("--num-frames", type=int, metavar="T",
                     help="frames of a clip (default: 8; 12 with --backbone)")  # fmt: skip
    own.add_argument("--size", type=int, metavar="PIXELS",
                     help="side of a frame (default: 32; that of the CLIP)")  # fmt: skip
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not fit together.

    Raises:
        ValueError: They do not; the message says which.
    """
    if options.command == "search" and not options.words:
        raise ValueError(f'search expects words: search "{QUERY}"')
    if options.html is not None and options.command != "search":
        raise ValueError("--html is of search: give both or none")
    if (options.videos is None) != (options.captions is None):
        raise ValueError("--videos and --captions belong together: give both or none")
    if options.clips is not None and options.videos is not None:
        raise ValueError("--clips is of the rendered corpus: not with --videos")
    if options.train_backbone and options.backbone is None:
        raise ValueError("--train-backbone needs --backbone FOLDER")
    if options.threads is not None and options.threads < 1:
        raise ValueError(f"--threads must be at least 1, got {options.threads}")
    if options.compare and options.seed:
        raise ValueError(f"--compare runs the seeds 0, 1 and 2, got --seed {options.seed}")
    if options.entries is not None and not options.compare:
        raise ValueError("--entries is a part of the study: it needs --compare")
    if unknown := sorted(set(options.entries or ()) - set(ENTRIES)):
        raise ValueError(f"--entries are of {', '.join(ENTRIES)}, got {', '.join(unknown)}")
    if len(set(options.entries or ())) < len(options.entries or ()):
        raise ValueError(f"--entries must not repeat a name, got {','.join(options.entries)}")
    if options.device != "cpu" and not options.device.startswith("cuda"):
        raise ValueError(f"--device must be cpu or cuda, got {options.device}")
    if options.device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"--device {options.device} is not there: torch finds no CUDA device")


def settings_of(options: argparse.Namespace) -> Settings:
    """Make the settings that the options ask for."""
    steps = options.steps
    if steps is None:
        steps = STUDY_STEPS if options.compare else Settings.steps
    if options.backbone is None:
        return Settings(
            seed=options.seed,
            steps=steps,
            num_frames=8 if options.num_frames is None else options.num_frames,
            size=32 if options.size is None else options.size,
        )
    from examples.quickstart.pretrained import read_preprocessing

    folder = str(options.backbone.resolve())
    size, _, _ = read_preprocessing(folder)
    if options.size not in (None, size):
        raise ValueError(f"--size must be that of the backbone, {size}, got {options.size}")
    return Settings(
        seed=options.seed,
        steps=steps,
        lr=1e-4,  # the paper's, whose backbone is pretrained too
        head_lr_scale=10.0,
        num_frames=12 if options.num_frames is None else options.num_frames,
        size=size,
        backbone=folder,
        train_backbone=options.train_backbone,
    )


def run_search(options: argparse.Namespace) -> None:
    """Print the best clips, and write them as a page."""
    found, warnings = search(options.folder, options.words)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    for rank, (hit, caption) in enumerate(found, start=1):
        print(f"{rank}. {hit.score:6.3f}  {caption}\n           {printable(hit.video)}")
    if options.html is not None:
        write_page(options.html, options.words, [hit for hit, _ in found])


def run_training(options: argparse.Namespace) -> None:
    """Run the default or the study, and say what it leaves."""
    began = time.perf_counter()
    settings = settings_of(options)
    material = load_material(
        options.folder,
        num_frames=settings.num_frames,
        size=settings.size,
        videos=options.videos,
        captions=options.captions,
        corpus_sizes=None if options.clips is None else {"train": options.clips},
        progress=not options.quiet,
    )
    sizes = ", ".join(f"{count} {name}" for name, count in material.sizes.items())
    print(f"clips: {sizes}; {settings.num_frames} frames of {settings.size} pixels")
    folder, progress = options.folder, not options.quiet
    if options.compare:
        entries = tuple(ENTRIES) if options.entries is None else options.entries
        summary = compare(
            settings,
            material,
            folder,
            entries=entries,
            device=options.device,
            progress=progress,
        )
        print(markdown_tables(summary))
        print(f"results: {folder / 'compare.json'}, {folder / 'compare.md'}")
        return
    summary = demo(
        settings, material, folder, began=began, device=options.device, progress=progress
    )
    print(f"\nresults:  {folder / 'results.json'}")
    print(f"pictures: {folder / 'contact_sheet.png'}, {folder / 'curves.png'}")
    print(f"total time: {summary['seconds']:.0f} s, at most {summary['peak_gib']:.1f} GiB")
    where = "" if folder == Path("quickstart-output") else f" --folder {shlex.quote(str(folder))}"
    query = QUERY if material.rendered else material.splits["test"].clips[0].caption
    print(f"search:   {COMMAND} search {shlex.quote(query)}{where}")


def run_command(options: argparse.Namespace) -> None:
    """Do what the options ask for."""
    check_options(options)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    if options.command == "search":
        run_search(options)
    else:
        run_training(options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    # intermixed, so that options may stand between `search` and its words
    options = build_parser().parse_intermixed_args(arguments)
    return exit_status(lambda: run_command(options))


if __name__ == "__main__":
    sys.exit(main())
