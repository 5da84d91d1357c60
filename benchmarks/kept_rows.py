"""Rows of figures that several calls of a benchmark collect, each of them for a limited time."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import machine, write_json

Row = dict[str, Any]


class OutOfTime(Exception):
    """The time of this call is over; what was built is there for the next one."""


class KeptRows:
    """Rows in a JSON file: those that are there, those that were begun, those that were left out.

    Args:
        file: Of earlier calls too, if it exists; None: nothing is kept.
        minutes: After which `check_time` stops this call.

    Raises:
        SystemExit: The file has figures of other code, which belong in no table with these.
    """

    def __init__(self, file: Path | None, minutes: float) -> None:
        self._file, self._minutes = file, minutes
        self._end = time.monotonic() + 60 * minutes
        self.figures: dict[str, Any] = {"machine": machine()}
        self.figures |= {"rows": [], "begun": [], "left_out": []}
        if file is not None and file.exists():
            kept = json.loads(file.read_text(encoding="utf-8"))
            if kept["machine"]["code"] != self.figures["machine"]["code"]:
                raise SystemExit(f"{file} holds figures of other code: give another file")
            self.figures |= {name: value for name, value in kept.items() if name != "machine"}

    def find(self, store: str, segments: int) -> Row | None:
        """Return a row that is there."""
        return _find(self.figures["rows"], store, segments)

    def begin(self, store: str, segments: int) -> Row:
        """Return a row that was begun, or an empty one: nothing was built yet."""
        row = _find(self.figures["begun"], store, segments)
        if row is None:
            row = {"store": store, "segments": segments, "appended": 0, "append": 0.0}
            self.figures["begun"].append(row)
        return row

    def finish(self, row: Row) -> None:
        """Keep a row that is there now."""
        self.figures["begun"].remove(row)
        left_out = self.figures["left_out"]
        left_out[:] = [other for other in left_out if not _is(other, row["store"], row["segments"])]
        row["command"] = self.figures["machine"]["command"]
        self.figures["rows"].append(row)
        self.save()

    def leave_out(self, store: str, segments: int) -> None:
        """Note that a call did not finish a row."""
        if _find(self.figures["left_out"], store, segments) is None:
            self.figures["left_out"].append({"store": store, "segments": segments})

    def check_time(self) -> None:
        """Stop this call if its time is over.

        Raises:
            OutOfTime: It is.
        """
        if time.monotonic() > self._end:
            raise OutOfTime(f"{self._minutes:g} minutes are over")

    def save(self) -> None:
        """Write the file."""
        if self._file is not None:
            write_json(self._file, self.figures)


def _is(row: Row, store: str, segments: int) -> bool:
    return (row["store"], row["segments"]) == (store, segments)


def _find(rows: Sequence[Row], store: str, segments: int) -> Row | None:
    return next((row for row in rows if _is(row, store, segments)), None)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a benchmark whose calls go on with each other."""
    parser.add_argument("--json", type=Path, help="keep the figures in this file, go on with them")
    parser.add_argument("--minutes", type=float, default=30, help="of this call (%(default)s)")
    parser.add_argument(
        "--only-build", action="store_true", help="build, and leave the searches to the next call"
    )
    parser.add_argument(
        "--busy", action="store_true", help="say of what is built that others use the machine"
    )


def measure_rows(
    rows: KeptRows, wanted: Iterable[tuple[int, str]], measure: Callable[[int, str], Row | None]
) -> None:
    """Measure the rows that are not there, as long as there is time.

    Args:
        rows: Takes them.
        wanted: Sizes, and stores by their names.
        measure: Returns a row, or None if it is not to be finished by this call.
    """
    in_time = True
    try:
        for size, store in wanted:
            if rows.find(store, size) is not None:
                continue
            try:
                row = measure(size, store) if in_time else None
            except OutOfTime:
                in_time, row = False, None
            if row is not None:
                rows.finish(row)
            else:
                rows.leave_out(store, size)
    finally:
        rows.save()


def busy_note(rows: Sequence[Row]) -> str:
    """Say what the mark of some rows means, where one of them has it."""
    note = " Built \\*: while others used the machine."
    return note if any(row["busy"] for row in rows) else ""


def left_out(figures: dict[str, Any]) -> list[str]:
    """Say what was wanted and is not there, and which other calls the rows came from."""
    what = [f"{row['store']} at {row['segments']:,}" for row in figures["left_out"]]
    missing = ["", f"Left out, in the time that the calls had: {'; '.join(what)}."] if what else []
    return [*missing, *other_calls(figures)]


def other_calls(figures: dict[str, Any]) -> list[str]:
    """Say which calls other than the last one the rows came from."""
    others = {f"`{row['command']}`" for row in figures["rows"]}
    others -= {f"`{figures['machine']['command']}`"}
    return ["", f"Rows also came from {', '.join(sorted(others))}."] if others else []
