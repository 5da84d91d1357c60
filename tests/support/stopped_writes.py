"""Stop a writer at each call of the operating system, as if it were killed or lost its power."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from muse_adapter import files

CALLS = "open", "pwrite", "fsync", "ftruncate", "replace", "unlink", "mkdir"


class Stopped(BaseException):
    """The process was stopped here."""


class StoppedWrites:
    """Count the calls that write, and stop before one of them.

    After the stop, all of them fail: a killed process cleans nothing up.

    Args:
        stop: Number of the call that fails; None: none.
        error: Raised there. An `OSError` fails this one call only: a full disk.
        torn: Whether a stopped `pwrite` writes half of its bytes first.
    """

    def __init__(
        self, stop: int | None = None, *, error: BaseException | None = None, torn: bool = False
    ) -> None:
        self.calls: list[str] = []
        self._stop, self._error, self._torn = stop, error or Stopped(), torn
        self._paths: dict[int, Path] = {}
        # What a power cut loses: bytes, new names, and renames with what they replaced.
        self._bytes: list[tuple[Path, int, int]] = []
        self._names: list[Path] = []
        self._renames: list[tuple[Path, bytes | None]] = []

    def patch(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in CALLS:
            monkeypatch.setattr(os, name, self._counted(name, getattr(os, name)))
        monkeypatch.setattr(Path, "open", self._opened(Path.open))

    def forget(self) -> None:
        """Let this process think of its temporary files as another one would."""
        files._own_parts.clear()

    def cut_power(self) -> None:
        """Lose everything that was not brought to the disk."""
        for path, offset, length in self._bytes:
            if path.exists():
                with path.open("r+b") as file:
                    file.seek(offset)
                    file.write(bytes(length))
        for path, content in reversed(self._renames):
            if content is None:
                path.unlink()
            else:
                path.write_bytes(content)
        for path in self._names:
            path.unlink(missing_ok=True)

    def _count(self, name: str) -> bool:
        """Return whether to stop at this call; raise if the process has stopped before."""
        number = len(self.calls)
        self.calls.append(name)
        if self._stop is not None and number > self._stop and isinstance(self._error, Stopped):
            raise Stopped
        return number == self._stop

    def _counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open" and not arguments[1] & (os.O_RDWR | os.O_WRONLY):
                file = function(*arguments, **options)  # it only reads, or is a folder to sync
                self._paths[file] = Path(arguments[0])
                return file
            if self._count(name):
                if name == "pwrite" and self._torn:
                    file, content, offset = arguments
                    function(file, content[: len(content) // 2], offset)
                raise self._error
            created = name == "open" and not Path(arguments[0]).exists()
            replaced = self._replaced(arguments) if name == "replace" else None
            result = function(*arguments, **options)
            if name == "open":
                self._paths[result] = Path(arguments[0])
                self._names += [Path(arguments[0])] if created else []
            elif name == "pwrite":
                self._bytes.append((self._paths[arguments[0]], arguments[2], result))
            elif name == "replace":
                self._renames.append((Path(arguments[1]), replaced))
            elif name == "fsync":
                self._synced(self._paths.get(arguments[0]))
            return result

        return call

    def _opened(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(path: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            if set(mode) & set("wax+") and self._count("Path.open"):
                raise self._error
            file = function(path, mode, *arguments, **options)
            if "b" in mode:
                self._paths[file.fileno()] = path
            return file

        return call

    def _replaced(self, arguments: Any) -> bytes | None:
        target = Path(arguments[1])
        return target.read_bytes() if target.exists() else None

    def _synced(self, path: Path | None) -> None:
        self._bytes = [each for each in self._bytes if each[0] != path]
        if path is not None and path.is_dir():
            self._names = [each for each in self._names if each.parent != path]
            self._renames = [each for each in self._renames if each[0].parent != path]


class CallAtWrite(StoppedWrites):
    """Count the calls that write, and do something else before one of them.

    Args:
        moment: Number of that call.
        action: What is done; its own calls do not count.
    """

    def __init__(self, moment: int, action: Callable[[], None]) -> None:
        super().__init__()
        self._moment, self._action, self._acting = moment, action, False

    def _count(self, name: str) -> bool:
        if self._acting:
            return False
        if len(self.calls) == self._moment:
            self._acting = True
            self._action()
            self._acting = False
        return super()._count(name)
