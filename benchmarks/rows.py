"""The rows of a run: every head on every case, kept in a file as they come."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.contenders import Contender, contenders, countable
from benchmarks.flops import count
from benchmarks.fresh import DiedError, in_fresh_process
from benchmarks.gate import against_definition, difference
from benchmarks.measure import machine, write_json
from benchmarks.settings import DTYPES, Case, Settings
from benchmarks.timing import Outcome, measure

ROOT = Path(__file__).resolve().parent.parent

Row = dict[str, Any]
Figures = dict[str, Any]


def start(settings: Settings, file: Path | None) -> Figures:
    """What stands in a file already, or an empty beginning.

    Raises:
        ValueError: the file's figures stem from another machine, other code or other settings.
    """
    figures: Figures = {
        "machine": about(settings.device),
        "settings": settings.same_for_all_rows(),
        "rows": [],
    }
    if file is None or not file.exists():
        return figures
    before = json.loads(file.read_text(encoding="utf-8"))
    for part in ("settings", "machine"):
        old, new = _lasting(before.get(part, {})), _lasting(figures[part])
        changed = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
        if changed:
            what = ", ".join(f"{key} {old.get(key)!r}, now {new.get(key)!r}" for key in changed)
            raise ValueError(
                f"{file} holds figures that these would not fit ({what}): give another file, or "
                "delete it"
            )
    return {**before, **figures, "rows": [row for row in before["rows"] if not row.get("busy")]}


def about(device: str) -> dict[str, Any]:
    """What a figure must be read with."""
    found = {**machine(), "code": _code()}
    for package in ("numba", "triton", "mamba-ssm", "causal-conv1d"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    if device == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return found


def measure_rows(settings: Settings, figures: Figures, keep: Callable[[], None]) -> Iterator[Row]:
    """Measure what is not among the rows yet, and give each row as it comes.

    Args:
        settings: the cases, and what is common to all rows.
        figures: what `start` gave; rows are added to it.
        keep: called after each row.
    """
    found = contenders(settings.device, DTYPES[settings.dtype])
    names = settings.heads or tuple(name for name in found if name not in settings.leave_out)
    reasons = {name: found[name] for name in names if isinstance(found[name], str)}
    figures["not_here"] = reasons
    heads = {name: head for name in names if isinstance(head := found[name], Contender)}
    failed = {name: against_definition(head, settings) for name, head in heads.items()}
    for case in settings.cases():
        judges: dict[str, tuple[str, list[float]]] = {}
        for name, head in heads.items():
            key = _key(name, head, case)
            if any(_is(row, key) for row in figures["rows"]):
                continue
            row = key | {"tokens": case.tokens, "date": _now()}
            flops = count(countable(name, head), case, settings.dim)
            if wrong := failed[name]:
                row |= {"not_measured": f"against its definition {wrong}", "wrong": True}
            elif reason := _too_slow(row, flops, figures["rows"], settings.limit_s):
                row["not_measured"] = reason
            else:
                row |= _measured(name, head, case, settings, judges) | {"flops": flops}
            figures["rows"].append(row)
            keep()
            yield row


def describe(row: Mapping[str, Any]) -> str:
    """A row as a line of text."""
    height, width = row["grid"]
    case = f"{row['mode']}, {row['frames']} x {height}x{width}, batch {row['batch']}"
    line = f"{row['what']:<28} {case:<34} "
    if "not_measured" in row:
        return line + f"not measured: {row['not_measured']}"
    low, high = row["quartiles_s"]
    line += f"{row['seconds'] * 1e3:9.2f} ms (quartiles {low * 1e3:.2f}, {high * 1e3:.2f})"
    line += f", {row['peak_bytes'] / 2**20:8.1f} MiB"
    return line + (", busy machine" if row["busy"] else "")


def write(file: Path | None, figures: Figures) -> None:
    """Keep the figures, if in a file."""
    if file is not None:
        write_json(file, figures)


def _measured(
    name: str,
    head: Contender,
    case: Case,
    settings: Settings,
    judges: dict[str, tuple[str, list[float]]],
) -> Row:
    """The figures of a row, or why there are none.

    `judges` holds for each function the head that was measured first on this case, and its result.
    """
    try:
        outcome = _outcome(name, case, settings)
    except (MemoryError, DiedError, torch.cuda.OutOfMemoryError) as error:
        return {"not_measured": f"does not fit into this machine's memory: {error}"}
    judge, expected = judges.setdefault(head.function, (name, outcome.result))
    got = {"the result": torch.tensor(outcome.result)}
    if wrong := difference(got, {"the result": torch.tensor(expected)}, settings.dtype):
        return {"not_measured": f"against {judge} {wrong}", "wrong": True}
    return {
        "seconds": outcome.median,
        "quartiles_s": [outcome.low, outcome.high],
        "runs": outcome.runs,
        "busy": outcome.busy,
        "tokens_per_s": case.batch * case.tokens / outcome.median,
        "peak_bytes": outcome.peak_bytes,
        "held_bytes": outcome.held_bytes,
        "parameters": outcome.parameters,
    }


def _outcome(name: str, case: Case, settings: Settings) -> Outcome:
    if settings.device != "cpu":
        return measure(name, case, settings)
    outcome: Outcome = in_fresh_process(measure, name, case, settings)
    return outcome


def _too_slow(row: Row, flops: int, rows: list[Row], limit_s: float) -> str | None:
    """Why a run is expected to take too long, from the longest one of its head so far."""
    before = [
        other
        for other in rows
        if (other["head"], other["mode"]) == (row["head"], row["mode"]) and "seconds" in other
    ]
    if not before:
        return None
    last = max(before, key=lambda other: float(other["seconds"]))
    ratio = flops / last["flops"] if last["flops"] else row["tokens"] / last["tokens"]
    expected = last["quartiles_s"][0] * ratio  # the others may be a busy machine's
    if expected <= limit_s:
        return None
    return f"expected to take {expected:.1f} s a run, over the limit of {limit_s:g} s"


def _key(name: str, head: Contender, case: Case) -> Row:
    return {"head": name, "what": head.what, "function": head.function} | {
        "mode": case.mode,
        "frames": case.frames,
        "grid": list(case.grid),
        "batch": case.batch,
    }


def _is(row: Row, key: Row) -> bool:
    return all(row[name] == value for name, value in key.items())


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")


def _lasting(found: Mapping[str, Any]) -> dict[str, Any]:
    """Without what differs from run to run."""
    return {key: value for key, value in found.items() if key not in ("date", "command")}


def _code() -> str:
    """A fingerprint of the sources that are measured and that measure."""
    digest = hashlib.sha256()
    for folder in ("muse_adapter", "benchmarks"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            digest.update(path.relative_to(ROOT).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]
