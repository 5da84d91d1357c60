"""Errors of the commands: one line on standard error, and the exit status."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable

from muse_adapter.search.listing import printable

ERRORS = (OSError, ValueError, TypeError, ImportError, RuntimeError)
FAILED, INTERRUPTED = 2, 130

Command = Callable[[argparse.Namespace], int]


def one_line(error: BaseException) -> str:
    """Return the message of an error without its line ends."""
    return " ".join(printable(line) for line in str(error).split("\n") if line.strip())


def reporting_errors(command: Command) -> Command:
    """Let a command print its errors and return the exit status 2, or 130 after an interrupt."""

    @functools.wraps(command)
    def reporting(arguments: argparse.Namespace) -> int:
        try:
            return command(arguments)
        except ERRORS as error:
            print(f"muse-adapter {command.__name__}: {one_line(error)}", file=sys.stderr)
            return FAILED
        except KeyboardInterrupt:
            print(f"\nmuse-adapter {command.__name__}: interrupted", file=sys.stderr)
            return INTERRUPTED

    return reporting
