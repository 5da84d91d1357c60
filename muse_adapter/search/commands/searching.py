"""`muse-adapter search "words" --index URI`."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from muse_adapter.search.commands.address import add_address
from muse_adapter.search.commands.failures import reporting_errors
from muse_adapter.search.index import VideoIndex
from muse_adapter.search.listing import clock, printable
from muse_adapter.search.page import write_page
from muse_adapter.search.saved_models import load_model


def add_search(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `search` to the commands."""
    parser = commands.add_parser(
        "search",
        help="find videos by a text",
        description="Find the videos of an index that fit a text best, and where in them.",
    )
    parser.add_argument("words", help="what to search for, in quotes")
    add_address(parser, "--index")
    parser.add_argument(
        "--model", metavar="MODEL", help="copy of the model (default: from where it was saved)"
    )
    parser.add_argument(
        "-k", type=int, default=10, metavar="K", help="how many videos to find (%(default)s)"
    )
    parser.add_argument("--no-rerank", action="store_true", help="leave out the second stage")
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="write a page with frames of the hits, which plays them",
    )
    parser.set_defaults(run=search)


@reporting_errors
def search(arguments: argparse.Namespace) -> int:
    """Print the hits, and write them as a page; return the exit status."""
    model = None if arguments.model is None else load_model(arguments.model)
    with VideoIndex.open(arguments.index, name=arguments.name, model=model) as index:
        hits = index.search(
            arguments.words, arguments.k, rerank=False if arguments.no_rerank else None
        )
    if arguments.html is not None:
        write_page(arguments.html, arguments.words, hits)
    if arguments.json:
        found = [dataclasses.asdict(hit) for hit in hits]
        print(json.dumps({"query": arguments.words, "hits": found}, indent=2))
        return 0
    for rank, hit in enumerate(hits, start=1):
        span = f"{clock(hit.start)} to {clock(hit.end)}"
        print(f"{rank:>3}. {hit.score:6.3f}  {span:<20}  {printable(hit.video)}")
    return 0
