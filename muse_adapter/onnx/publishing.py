"""Give an exported model its name: a graph, and the weights beside it where they are too large."""

from __future__ import annotations

import contextlib
import re
import secrets
from pathlib import Path

from muse_adapter.files import write_whole


def unique_name(path: Path) -> str:
    """Return a name for the graph while it is made; the name of its weights follows from it."""
    return f"{path.name}.{secrets.token_hex(8)}"


def publish(made: Path, path: Path) -> None:
    """Write a graph that was made under a unique name, and its weights, as one step.

    A graph names the file of its weights. Each export has a file of its own, `model.onnx.….data`,
    so the old graph has its old weights until the new graph replaces it; then they are removed, and
    those of exports that were killed. Two exports to one path at the same time are not supported.

    Args:
        made: The graph, of a name from `unique_name`; its weights stand beside it, if anywhere.
        path: Where it goes.

    Raises:
        OSError: A file cannot be written.
    """
    weights = made.with_name(f"{made.name}.data")
    before = _weights_of(path)
    if weights.exists():
        write_whole({path.with_name(weights.name): weights.read_bytes()})
    write_whole({path: made.read_bytes()})
    for old in before:
        with contextlib.suppress(OSError):  # it may be open elsewhere: the next export removes it
            old.unlink(missing_ok=True)


def _weights_of(path: Path) -> list[Path]:
    """List the weights of all exports to a path."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
