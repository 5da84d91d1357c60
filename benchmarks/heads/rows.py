"""The rows of a run: every head on every case, kept in a file as they come."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.correctness import BOUNDS, difference
from benchmarks.heads.definition import against_definition
from benchmarks.heads.flops import count
from benchmarks.heads.variants import Variant, countable, variants
from benchmarks.heads.workload import DTYPES, Case, Outcome, Settings, measure
from benchmarks.isolated import DiedError, isolated
from benchmarks.machine import machine, now

Row = dict[str, Any]
Figures = dict[str, Any]


def start(settings: Settings, file: Path | None) -> Figures:
    """Read what stands in a file already, or begin anew.

    Args:
        settings: What the rows will have in common.
        file: Where figures of an earlier run may be kept.

    Returns:
        The figures; rows of a busy machine are left out, to be measured again.

    Raises:
        ValueError: The file's figures stem from another machine, other code or other settings.
    """
    figures: Figures = {
        "machine": machine(settings.device),
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


def measure_rows(settings: Settings, figures: Figures, keep: Callable[[], None]) -> Iterator[Row]:
    """Measure what is not among the rows yet, and yield each row as it comes.

    Args:
        settings: The cases, and what is common to all rows.
        figures: What `start` returned; rows are added to it.
        keep: Called after each row.

    Cases that no time is left for are counted by head in `figures["left_out"]`.
    """
    end = time.perf_counter() + settings.total_s
    left_out: dict[str, int] = {}
    figures["left_out"] = left_out
    found = variants(settings.device, DTYPES[settings.dtype])
    names = settings.heads or tuple(name for name in found if name not in settings.leave_out)
    reasons = {name: found[name] for name in names if isinstance(found[name], str)}
    figures["not_here"] = reasons
    heads = {name: head for name in names if isinstance(head := found[name], Variant)}
    failed = {name: against_definition(head, settings) for name, head in heads.items()}
    for case in settings.cases():
        judges: dict[str, tuple[str, list[float]]] = {}
        for name, head in heads.items():
            key = _key(name, head, case)
            if any(_is(row, key) for row in figures["rows"]):
                continue
            if time.perf_counter() >= end:
                left_out[name] = left_out.get(name, 0) + 1
                continue
            row = key | {"tokens": case.tokens, "date": now()}
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
    """Put a row into a line of text."""
    height, width = row["grid"]
    case = f"{row['mode']}, {row['frames']} x {height}x{width}, batch {row['batch']}"
    line = f"{row['what']:<28} {case:<34} "
    if "not_measured" in row:
        return line + f"not measured: {row['not_measured']}"
    low, high = row["quartiles_s"]
    line += f"{row['seconds'] * 1e3:9.2f} ms (quartiles {low * 1e3:.2f}, {high * 1e3:.2f})"
    line += f", {row['peak_bytes'] / 2**20:8.1f} MiB"
    return line + (", busy machine" if row["busy"] else "")


def _measured(
    name: str,
    head: Variant,
    case: Case,
    settings: Settings,
    judges: dict[str, tuple[str, list[float]]],
) -> Row:
    """Return the figures of a row, or why there are none.

    `judges` holds for each function the head that was measured first on this case, and its result.
    """
    try:
        outcome = _outcome(name, case, settings)
    except (MemoryError, DiedError, torch.cuda.OutOfMemoryError) as error:
        return {"not_measured": f"does not fit into this machine's memory: {error}"}
    judge, expected = judges.setdefault(head.function, (name, outcome.result))
    if wrong := difference(
        {"the result": torch.tensor(outcome.result)},
        {"the result": torch.tensor(expected)},
        BOUNDS[settings.dtype],
    ):
        return {"not_measured": f"against {judge} {wrong}", "wrong": True}
    timing = outcome.timing
    return {
        "seconds": timing.median,
        "quartiles_s": [timing.low, timing.high],
        "runs": timing.rounds,
        "busy": timing.busy,
        "other_load": timing.other_load,
        "own_processors": timing.own_processors,
        "waiting": timing.waiting,
        "tokens_per_s": case.batch * case.tokens / timing.median,
        "peak_bytes": outcome.peak_bytes,
        "held_bytes": outcome.held_bytes,
        "parameters": outcome.parameters,
    }


def _outcome(name: str, case: Case, settings: Settings) -> Outcome:
    if settings.device != "cpu":
        return measure(name, case, settings)
    outcome: Outcome = isolated(measure, name, case, settings, preloaded=True)
    return outcome


def _too_slow(row: Row, flops: int, rows: list[Row], limit_s: float) -> str | None:
    """Say why a run is expected to take too long, from the longest one of its head so far."""
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


def _key(name: str, head: Variant, case: Case) -> Row:
    return {"head": name, "what": head.what, "function": head.function} | {
        "mode": case.mode,
        "frames": case.frames,
        "grid": list(case.grid),
        "batch": case.batch,
    }


def _is(row: Row, key: Row) -> bool:
    return all(row[name] == value for name, value in key.items())


def _lasting(found: Mapping[str, Any]) -> dict[str, Any]:
    """Drop what differs from run to run."""
    return {key: value for key, value in found.items() if key not in ("date", "command")}
