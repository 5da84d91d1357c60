"""The options that say which index a command is about."""

from __future__ import annotations

import argparse


def add_address(parser: argparse.ArgumentParser, option: str) -> None:
    """Add the address of the index, as an option of this name, and `--name`."""
    parser.add_argument(
        option,
        required=True,
        metavar="URI",
        help="folder, .db file or http://host:port of the index",
    )
    parser.add_argument("--name", default="videos", help="of the index at its URI (%(default)s)")
