"""The user's files: found, read, and written all or none."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from muse_adapter.patching.errors import PatchError
from muse_adapter.patching.source import Source, decode


def open_root(path: str | os.PathLike[str]) -> Path:
    """The checkout's folder, links resolved."""
    root = Path(path)
    if not root.is_dir():
        found = "a file" if root.exists() else "nothing"
        raise PatchError(f"expected the folder of a checkout, {str(path)!r} is {found}")
    return root.resolve()


def read(root: Path, name: str, option: str) -> Source:
    """One file of the checkout.

    Raises:
        PatchError: Not there, a link out of the checkout, or not in its encoding.
    """
    path = root / name
    resolved = path.resolve()
    if not resolved.is_relative_to(root):
        raise PatchError(
            f"{name} leads out of the checkout, to {resolved}; patch that tree, or put a copy of "
            "the file here"
        )
    if not resolved.is_file():
        raise PatchError(f"{name} is not in {root}; another file is named with {option}")
    return decode(name, resolved, resolved.read_bytes())


def first_of(root: Path, names: Sequence[str], option: str) -> str:
    """The one of several names that is there."""
    there = [name for name in names if (root / name).exists()]
    if len(there) == 1:
        return there[0]
    found = "all of them are" if there else "it is not"
    raise PatchError(
        f"expected {' or '.join(names)}, {found} in {root}; another file is named with {option}"
    )


def uncommitted(root: Path, names: Sequence[str]) -> list[str]:
    """Those of the files that git knows and that differ from its last commit."""
    if shutil.which("git") is None:
        return []
    done = subprocess.run(
        ["git", "-C", str(root), "status", "--porcelain", "-z", "--", *names],
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:  # no repository
        return []
    entries = [entry for entry in done.stdout.decode(errors="replace").split("\0") if entry]
    changed = [entry[3:] for entry in entries if not entry.startswith("??")]
    return [name for name in names if any(entry.endswith(name) for entry in changed)]


def write_all(contents: Mapping[Path, tuple[bytes, bytes]]) -> None:
    """Replaces files: all of them, or none.

    New contents are written beside their files first and renamed last; a failure or interrupt on
    the way puts back what was already renamed. Modes are kept.

    Args:
        contents: Path -> (what it holds now, what it shall hold).

    Raises:
        PatchError: A file or folder is read-only, or a file changed meanwhile.
        OSError: The disk says no.
    """
    for path in contents:
        for what in (path, path.parent):
            # By the mode too: root may write anything, and a rename would replace a read-only file.
            if not (what.stat().st_mode & stat.S_IWUSR and os.access(what, os.W_OK)):
                raise PatchError(f"{what} is read-only; nothing was written (chmod u+w it first)")
    parts: dict[Path, Path] = {}
    renamed: list[Path] = []
    try:
        for path, (_, new) in contents.items():
            parts[path] = _write_beside(path, new)
        for path, (old, _) in contents.items():
            if path.read_bytes() != old:
                raise PatchError(f"{path} changed meanwhile; nothing was written")
        try:
            for path, part in parts.items():
                renamed.append(path)
                os.replace(part, path)
        except BaseException:
            for path in renamed:
                if path.read_bytes() != contents[path][0]:
                    os.replace(_write_beside(path, contents[path][0]), path)
            raise
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


def _write_beside(path: Path, content: bytes) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        status = path.stat()
        with contextlib.suppress(OSError, AttributeError):  # another's file, where we may
            os.chown(part, status.st_uid, status.st_gid)
        part.chmod(stat.S_IMODE(status.st_mode))
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return part
