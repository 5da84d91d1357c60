"""The video files of folders, and names of files as text that is safe to show."""

from __future__ import annotations

import os
from collections.abc import Iterable

from muse_adapter.data.video.container import VIDEO_SUFFIXES


def list_videos(paths: Iterable[str | os.PathLike[str]]) -> tuple[list[str], dict[str, str]]:
    """List the video files in folders and their subfolders.

    Hidden files and folders, whose names begin with a dot, are left out, and symbolic links to
    folders are not followed.

    Args:
        paths: Folders, and files, which are taken whatever their names are.

    Returns:
        Absolute paths, each once, those of a folder in the order of their names; and a sentence for
        each folder that cannot be read.

    Raises:
        FileNotFoundError: A path does not exist.
    """
    found: dict[str, None] = {}
    unreadable: dict[str, str] = {}

    def leave_out(error: OSError) -> None:
        name = os.fsdecode(error.filename)
        unreadable[name] = f"cannot read {name}: {error.strerror}"

    for path in map(os.path.abspath, paths):
        if not os.path.exists(path):
            raise FileNotFoundError(f"no such file or folder: {os.fsdecode(path)!r}")
        if not os.path.isdir(path):
            found[os.fsdecode(path)] = None
            continue
        for folder, folders, files in os.walk(path, onerror=leave_out):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(files):
                if not name.startswith(".") and name.lower().endswith(VIDEO_SUFFIXES):
                    found[os.path.join(folder, name)] = None
    return list(found), unreadable


def printable(text: str) -> str:
    r"""Return a text on one line, without characters that are not seen as they are.

    A file name may hold line ends, escape sequences of terminals, marks that turn the direction of
    writing, and bytes that are no Unicode: they become escapes such as `\n` and `\u202e`.
    """
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def clock(seconds: float) -> str:
    """Return a time in a video as 1:02:03.4, or 2:03.4 in the first hour."""
    tenths = round(seconds * 10)
    minutes, tenths = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    start = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{start}:{tenths // 10:02d}.{tenths % 10}"
