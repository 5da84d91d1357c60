"""`muse-adapter index FOLDER --model MODEL --to URI`."""

from __future__ import annotations

import argparse
import contextlib
import sys

from muse_adapter.search.commands.address import add_address
from muse_adapter.search.commands.failures import ERRORS, one_line, reporting_errors
from muse_adapter.search.commands.processes import started_processes
from muse_adapter.search.index import VideoIndex
from muse_adapter.search.listing import list_videos, printable
from muse_adapter.search.saved_models import load_model
from muse_adapter.search.segments import AddReport

INCOMPLETE = 1


def add_index(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `index` to the commands."""
    parser = commands.add_parser(
        "index",
        help="make an index of the videos in a folder, or add to one",
        description="Embed the videos of folders and add them to an index, which is created if "
        "there is none. What is in it is skipped, so an interrupted command is simply repeated. "
        "Under torchrun each process takes its share of the videos, and all add to one index. Exit "
        "status: 0, 1 if a video cannot be read, 2 after an error.",
    )
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="FOLDER",
        help="folder that is searched for video files, or a video",
    )
    add_address(parser, "--to")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="saved SentenceTransformer with a VideoTransformer: a folder, or a "
        "name on the Hugging Face hub; an index that is there remembers it",
    )
    parser.add_argument(
        "--window",
        type=float,
        metavar="SECONDS",
        help="cut videos into windows, for long ones (default: do not)",
    )
    parser.add_argument(
        "--stride",
        type=float,
        metavar="SECONDS",
        help="from the start of a window to that of the next (default: WINDOW)",
    )
    parser.add_argument(
        "--no-frame-features",
        action="store_true",
        help="of a new index: keep no frame features, which the second stage of a search needs",
    )
    parser.add_argument(
        "--batch-size",
        type=int,
        default=8,
        metavar="N",
        help="segments that are embedded at once (%(default)s)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=0,
        metavar="N",
        help="processes that decode videos (default: this one does)",
    )
    parser.add_argument("--quiet", action="store_true", help="print no progress")
    parser.set_defaults(run=index)


@reporting_errors
def index(arguments: argparse.Namespace) -> int:
    """Add the videos of folders to an index; return the exit status."""
    with started_processes() as processes, contextlib.ExitStack() as stack:
        opened = prepared = None
        if processes.rank == 0:
            try:
                # What is wrong here is said before an index is made.
                listed = _list(arguments)
                opened = stack.enter_context(_open(arguments))
                prepared = listed
            except ERRORS:
                processes.broadcast(None)
                raise
        prepared = processes.broadcast(prepared)
        if prepared is None:
            return 0  # the first process says why, and its status counts
        videos, unreadable = prepared
        result: AddReport | str
        try:
            if opened is None:
                opened = stack.enter_context(_open(arguments, create=False))
            result = opened.add(
                videos[processes.rank :: processes.count],
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                progress=processes.rank == 0 and not arguments.quiet,
                shared=processes.count > 1,
            )
        except ERRORS as error:
            if processes.count == 1:
                raise
            result = f"process {processes.rank}: {one_line(error)}"
            # The report comes when the others are done, perhaps hours later.
            print(f"muse-adapter index: {result}", file=sys.stderr, flush=True)
        results = processes.gather(result)
        failures = [each for each in results if isinstance(each, str)]
        if processes.rank != 0:
            return 0  # torchrun ends all at the first other status, before the report is out
        if failures:
            raise RuntimeError("; ".join(failures))
        for report in results:
            unreadable |= report.unreadable
        assert opened is not None
        _print_report(opened, results, unreadable)
        return INCOMPLETE if unreadable else 0


def _list(arguments: argparse.Namespace) -> tuple[list[str], dict[str, str]]:
    """Check the options of adding, and list the videos."""
    if arguments.batch_size < 1 or arguments.workers < 0:
        raise ValueError(
            f"--batch-size must be at least 1 and --workers at least 0, got "
            f"{arguments.batch_size} and {arguments.workers}"
        )
    return list_videos(arguments.paths)


def _open(arguments: argparse.Namespace, *, create: bool = True) -> VideoIndex:
    """Open the index, or create it.

    Args:
        arguments: Of the command.
        create: Whether this process is the one that may create it.
    """
    model = None if arguments.model is None else load_model(arguments.model)
    try:
        found = VideoIndex.open(arguments.to, name=arguments.name, model=model)
    except FileNotFoundError:
        if not create:
            raise ValueError(
                "the first process has made the index, and it is not here: all must see one folder"
            ) from None
        if model is None:
            raise ValueError("there is no such index yet: a new one needs --model") from None
        return VideoIndex.create(
            arguments.to,
            model,
            name=arguments.name,
            window=arguments.window,
            stride=arguments.stride,
            frame_features=not arguments.no_frame_features,
        )
    for name in ("window", "stride"):
        given, fixed = getattr(arguments, name), getattr(found.settings, name)
        if given is not None and given != fixed:
            raise ValueError(f"the index was created with --{name} {fixed}, got {given}")
    if arguments.no_frame_features and found.settings.frame_features:
        raise ValueError("the index was created with frame features, got --no-frame-features")
    return found


def _print_report(opened: VideoIndex, reports: list[AddReport], unreadable: dict[str, str]) -> None:
    added, skipped = (
        sum(len(getattr(report, kind)) for report in reports) for kind in ("added", "skipped")
    )
    print(f"{added} videos added, {skipped} were in the index, {len(unreadable)} cannot be read")
    for reason in unreadable.values():
        print(f"  {printable(reason)}")
    # Not its address, which may hold a password.
    print(f"the index has {len(opened)} videos, {opened.segments} segments")
