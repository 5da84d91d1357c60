"""What the folder of a run says of it: its settings, and the videos that it began without."""

from __future__ import annotations

import json
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any

from examples.train.settings import Execution, RunSettings
from muse_adapter.files import write_whole

SETTINGS_FILE = "settings.json"
UNREADABLE_FILE = "unreadable.json"
MISSING_FILE = "missing.json"


@dataclass(frozen=True)
class LeftOut:
    """The videos that a run began without.

    Attributes:
        missing: Their names in the annotations, where they have no file.
        unreadable: Their paths, where the file cannot be read, and why.
    """

    missing: list[str]
    unreadable: dict[str, str]


def check_same_run(settings: RunSettings, execution: Execution) -> None:
    """Check that a folder holds no run, or one with the same settings.

    Raises:
        ValueError: It holds a run with other settings; the message says which.
    """
    path = execution.output / SETTINGS_FILE
    if not path.is_file():
        return
    # Settings that older runs lack have their defaults.
    defaults = {f.name: f.default for f in fields(RunSettings) if f.default is not MISSING}
    kept, wanted = {**defaults, **read_object(path, "--output")}, _settings_of(settings, execution)
    names = [name for name in {**kept, **wanted} if kept.get(name) != wanted.get(name)]
    if names:
        listed = ", ".join(f"{name} {kept.get(name)} and not {wanted.get(name)}" for name in names)
        raise ValueError(f"{execution.output} holds a run with {listed}: use another --output")


def kept_left_out(execution: Execution) -> LeftOut | None:
    """Read which videos the run began without; None: it is a new run.

    Raises:
        ValueError: A file is damaged.
    """
    # A run that was killed between the files has no settings, which are written last.
    names = UNREADABLE_FILE, MISSING_FILE, SETTINGS_FILE
    if not all((execution.output / name).is_file() for name in names):
        return None
    unreadable, missing, _ = (read_object(execution.output / name, "--output") for name in names)
    return LeftOut(list(missing), unreadable)


def keep_run(settings: RunSettings, execution: Execution, left_out: LeftOut) -> None:
    """Write the settings and the left-out videos of a run that was found valid.

    All processes write the same files, atomically.

    Args:
        settings: Its settings.
        execution: How it is carried out.
        left_out: The videos that it begins without.
    """
    contents = {
        UNREADABLE_FILE: left_out.unreadable,
        MISSING_FILE: {name: f"not in {settings.videos}" for name in left_out.missing},
        SETTINGS_FILE: _settings_of(settings, execution),
    }
    execution.output.mkdir(parents=True, exist_ok=True)
    write_whole(
        {
            execution.output / name: (json.dumps(content, indent=2) + "\n").encode()
            for name, content in contents.items()
        }
    )


def _settings_of(settings: RunSettings, execution: Execution) -> dict[str, Any]:
    return {**asdict(settings), "processes": execution.processes}


def read_object(path: Path, option: str) -> dict[str, Any]:
    """Read an object from a JSON file.

    Args:
        path: The file.
        option: That names its folder.

    Raises:
        ValueError: The file is damaged or holds something else.
    """
    try:
        content = json.loads(path.read_text())
        if not isinstance(content, dict):
            raise ValueError(f"it must be an object, got {type(content).__name__}")
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): use another {option}") from error
    return content
