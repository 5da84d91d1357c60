"""What the folder of a run says of it: its settings, and the videos that cannot be read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import Any

from examples.train.settings import Execution, RunSettings
from muse_adapter.files import write_whole

SETTINGS_FILE = "settings.json"
UNREADABLE_FILE = "unreadable.json"


def check_same_run(settings: RunSettings, execution: Execution) -> None:
    """Check that a folder holds no run, or one with the same settings.

    Raises:
        ValueError: It holds a run with other settings; the message says which.
    """
    path = execution.output / SETTINGS_FILE
    if not path.is_file():
        return
    # Settings that the run did not know yet were what they are by default.
    defaults = {f.name: f.default for f in fields(RunSettings) if f.default is not MISSING}
    kept, wanted = {**defaults, **_read(path)}, _settings_of(settings, execution)
    names = [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]
    if names:
        listed = ", ".join(f"{name} {kept.get(name)} and not {wanted.get(name)}" for name in names)
        raise ValueError(f"{execution.output} holds a run with {listed}: use another --output")


def kept_unreadable(execution: Execution) -> dict[str, str] | None:
    """Read which videos could not be read when the run began, and why; None: it is a new run."""
    path = execution.output / UNREADABLE_FILE
    return _read(path) if path.is_file() else None


def keep_run(settings: RunSettings, execution: Execution, unreadable: Mapping[str, str]) -> None:
    """Write what a run is, once everything that its settings name was found good.

    Of several processes each writes the same, and reads only what is whole.

    Args:
        settings: Its settings.
        execution: How it is carried out.
        unreadable: The videos that cannot be read, and why.
    """
    contents = {UNREADABLE_FILE: dict(unreadable), SETTINGS_FILE: _settings_of(settings, execution)}
    execution.output.mkdir(parents=True, exist_ok=True)
    write_whole(
        {
            execution.output / name: (json.dumps(content, indent=2) + "\n").encode()
            for name, content in contents.items()
        }
    )


def _settings_of(settings: RunSettings, execution: Execution) -> dict[str, Any]:
    return {**asdict(settings), "processes": execution.processes}


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): use another --output") from error
