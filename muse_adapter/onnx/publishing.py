"""Give an exported model its name: a graph, and the weights beside it where they are too large."""

from __future__ import annotations

import contextlib
import re
import secrets
from pathlib import Path

from muse_adapter.files import is_being_written, write_whole


def unique_name(path: Path) -> str:
    """Return a name for the graph while it is made; the name of its weights follows from it."""
    return f"{path.name}.{secrets.token_hex(8)}"


def publish(made: Path, path: Path) -> None:
    """Write a graph that was made under a unique name, and its weights, as one step.

    A graph names the file of its weights. Each export has a file of its own, `model.onnx.….data`,
    so the old graph has its old weights until the new graph replaces it; then they are removed, and
    those of exports that were killed (on another machine or in another container: after a day). Of
    several exports to one path at the same time, the last to replace the graph wins.

    Args:
        made: The graph, of a name from `unique_name`; its weights stand beside it, if anywhere.
        path: Where it goes.

    Raises:
        OSError: A file cannot be written.
    """
    weights = made.with_name(f"{made.name}.data")
    contents = {path.with_name(weights.name): weights.read_bytes()} if weights.exists() else {}
    write_whole({**contents, path: made.read_bytes()})
    _remove_old_weights(path)


def _remove_old_weights(path: Path) -> None:
    """Remove the weights that no graph names, unless another export is writing: it does so then.

    In this order: the graph of weights found here was being written or had its name already. When
    none is written any more, it is the graph at the path, or was replaced and will never be there.
    """
    found = _weights_of(path)
    if not found or is_being_written(path):
        return
    graph = path.read_bytes()
    for weights in found:
        if weights.name.encode() not in graph:
            with contextlib.suppress(OSError):  # it may be open elsewhere: the next one removes it
                weights.unlink(missing_ok=True)


def _weights_of(path: Path) -> list[Path]:
    """List the weights of all exports to a path."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{16}\.data")
    return [file for file in path.parent.iterdir() if pattern.fullmatch(file.name)]
