"""The tables: recalls of all methods, on screen and for the page."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from examples.quickstart import report

COMMAND = os.environ.get("MOMENTS_COMMAND", "python -m examples.moments")
COLUMNS = (
    ("R@1", ("all", "R@1")),
    ("R@5", ("all", "R@5")),
    ("R@10", ("all", "R@10")),
    ("R@100", ("all", "R@100")),
    ("SumR", ("all", "SumR")),
    ("static R@1", ("static", "R@1")),
    ("ordered R@1", ("ordered", "R@1")),
    ("order right", ("order_right",)),
    ("IoU 0.5", ("localisation",)),
)


def value(result: dict[str, Any], keys: Sequence[str]) -> float | None:
    """Return what is in a column of a result; None where the method has none."""
    found: Any = result
    for key in keys:
        if key not in found:
            return None
        found = found[key]
    return found


def screen_table(results: dict[str, dict[str, Any]]) -> str:
    """Lay out the table on screen: one line for each method."""
    lines = [f"{'':34}" + "".join(f"{name:>13}" for name, _ in COLUMNS)]
    for name, result in results.items():
        values = [value(result, keys) for _, keys in COLUMNS]
        lines.append(
            f"{name:34}" + "".join(f"{'-' if v is None else f'{v:.1f}':>13}" for v in values)
        )
    return "\n".join(lines)


def environment(backend: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Describe the present process for a results file."""
    return {
        **report.environment(backend),
        "command": " ".join(["python -m examples.moments", *arguments]),
    }
