"""Command line: `python -m examples.train`, or `torchrun --nproc-per-node N -m examples.train`."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from examples.command_line import exit_status
from examples.train.processes import ReportedError, rank_and_world, same_error
from examples.train.settings import CACHE_DTYPES, OBJECTIVES, Execution, RunSettings
from muse_adapter.data.annotations import DATA_SETS

COMMAND = os.environ.get("TRAIN_COMMAND", "python -m examples.train")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the options."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Train a head on a pretrained CLIP for text-video retrieval, and test it.",
    )
    add = parser.add_argument
    add("data_set", choices=list(DATA_SETS), help="the data set, or csv for your own")
    add("--annotations", required=True, help="folder of its annotations; csv: the file")
    add("--videos", required=True, help="folder of its videos")
    add("--model", required=True, help="folder or Hugging Face name of a CLIP or SigLIP")
    add("--output", type=Path, required=True, help="everything is kept here")
    run = parser.add_argument_group("the run; the defaults are those of the paper's data set")
    run.add_argument("--objective", choices=OBJECTIVES, help="default: contrastive")
    run.add_argument("--frames", type=int, help="frames of a video")
    run.add_argument("--fps", type=float, help="frames per second to sample from (default: 1)")
    run.add_argument("--words", type=int, help="tokens of a caption")
    run.add_argument("--batch-size", type=int, help="pairs in a step, over all processes")
    run.add_argument("--epochs", type=int, help="passes over the captions")
    run.add_argument("--lr", type=float, help="learning rate; the head learns at 10 times this")
    run.add_argument("--backbone-lr-scale", type=float, help="factor on it for the model")
    run.add_argument("--dropout", type=float, help="of the head (default: 0.1)")
    run.add_argument("--freeze", action="store_true", help="train the head alone")
    run.add_argument("--no-validation", action="store_false", dest="validate",
                     help="train on all videos and test the last epoch")  # fmt: skip
    run.add_argument("--cache-tokens", type=Path, metavar="FOLDER",
                     help="with --freeze: keep the tokens of every video there")  # fmt: skip
    run.add_argument("--cache-dtype", choices=CACHE_DTYPES,
                     help="of these tokens (default: float32)")  # fmt: skip
    run.add_argument("--skip-missing", action="store_true", help="leave out videos without a file")
    run.add_argument("--seed", type=int, help="default: 0")
    how = parser.add_argument_group("how it is carried out")
    how.add_argument("--workers", type=int, default=0, help="readers of videos, for each process")
    how.add_argument("--skip-unreadable", action="store_true", help="leave such videos out")
    how.add_argument("--save-steps", type=int, help="checkpoints every so many steps")
    how.add_argument("--grad-checkpointing", action="store_true", help="less memory, more time")
    how.add_argument("--report-to", nargs="*", default=[], help="such as tensorboard")
    how.add_argument("--eval-batch-size", type=int, default=16, help="default: 16")
    how.add_argument("--quiet", action="store_false", dest="progress", help="no progress bars")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        Exit status: 0, 2 after an error, 130 after an interrupt.
    """
    with _silent_unless_first():
        options = vars(build_parser().parse_args(arguments))
    logging.basicConfig(level=logging.WARNING)
    try:
        return exit_status(lambda: _train(options))
    except ReportedError:
        return 2


@contextlib.contextmanager
def _silent_unless_first() -> Iterator[None]:
    """Inside the `with` block only the first of several processes prints."""
    if rank_and_world()[0] == 0:
        yield
        return
    with (
        open(os.devnull, "w") as nothing,
        contextlib.redirect_stdout(nothing),
        contextlib.redirect_stderr(nothing),
    ):
        yield


def _train(options: dict[str, Any]) -> None:
    from examples.train.run import run

    if options["cache_tokens"] is not None:
        options["cache_dtype"] = options["cache_dtype"] or "float32"
    names = Execution.__dataclass_fields__
    how = {name: options.pop(name) for name in list(options) if name in names}
    rank, processes = rank_and_world()
    with same_error():
        execution = Execution(processes=processes, **how)
        settings = RunSettings.of(options.pop("data_set"), **options)
    result = run(settings, execution)
    if rank == 0:
        print(f"test, {result['tested']} epoch:")
        for name, value in result["test"].items():
            print(f"  {name:8} {value:6.2f}" if isinstance(value, float) else f"  {name:8} {value}")
        print(f"results: {execution.output / 'results.json'}")


if __name__ == "__main__":
    sys.exit(main())
